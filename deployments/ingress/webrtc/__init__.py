"""Playback over WebRTC (WHEP)."""
