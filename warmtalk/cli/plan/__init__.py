"""Capacity planning: replicas, GPUs, bandwidth, disk and cost for a number of sessions, from measured service times."""
