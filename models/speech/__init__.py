"""Audio, text, speech activity, visemes and feature windows."""
