"""What can be set: the strict schema of every stage, and the Serve config files that are deployed as they are."""
