"""The strict schema of all settings, and the Serve config files."""
