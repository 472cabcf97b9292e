"""Production checkpoints: manifest, installed files, loading."""
