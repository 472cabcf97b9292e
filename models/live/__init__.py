"""The live timeline of a session: positions, cues, pauses."""
