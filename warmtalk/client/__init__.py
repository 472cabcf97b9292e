"""The HTTP client, synchronous and asynchronous. Needs httpx only."""
