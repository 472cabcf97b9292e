"""The Serve half: thin wrappers that give each model its own replicas, queue and profile. No tensor arithmetic here.

Stage files never import one another: they meet as handles in `graph.py`.
"""
