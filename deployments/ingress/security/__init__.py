"""Access control: API keys, allowed hosts, origins."""
