"""The WebSocket at /sessions/{id}/ws: its messages, a connection, and the buffer of a recording."""
