"""Measures of how real a talking face looks, on arrays: one idea a module. Knows no files, avatars, pages or bars."""
