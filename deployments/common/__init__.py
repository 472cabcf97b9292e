"""Shared by all stages: the base class, the messages between stages, errors, clocks, paths."""
