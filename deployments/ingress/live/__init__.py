"""Viewers of live sessions: one hub per watched session."""
