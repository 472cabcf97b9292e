"""Pasting faces into frames, and the session file that the fragments are appended to."""
