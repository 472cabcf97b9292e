"""The live timeline of a session: positions, cues and pauses."""
