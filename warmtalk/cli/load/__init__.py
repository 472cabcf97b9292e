"""A load generator: sessions that come and go, speak in turns, watch, interrupt and enhance, by a scenario file."""
