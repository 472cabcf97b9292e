"""Quality measures of talking-head videos, on arrays: one subject per module."""
