"""The HTTP ingress. The only folder that imports FastAPI."""
