"""Checkpoints: the manifest of production weights, their files on disk, checksums, and safe loading."""
