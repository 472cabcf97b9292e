"""Judges a talking-head video: `warmtalk quality`. Reads it, measures it, holds it against bars, draws a page."""
