"""Viewers of live sessions: a hub per session, and the registry of hubs."""
