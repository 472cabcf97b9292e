"""`warmtalk fetch-weights`: downloads production weights and verifies them."""
