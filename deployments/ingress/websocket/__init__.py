"""The WebSocket at /sessions/{id}/ws: messages, connection, audio buffer."""
