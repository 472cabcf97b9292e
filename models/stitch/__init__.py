"""Pastes crops into frames, encodes fragments, keeps the growing session file."""
