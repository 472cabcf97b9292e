"""Live sessions in Stitch: the session clock, playout, pacing and broadcast."""
