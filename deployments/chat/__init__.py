"""The Chat stage: jobs that answer a message in speech."""
