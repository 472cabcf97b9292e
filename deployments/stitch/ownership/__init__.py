"""Which Stitch replica owns which session: a directory, the router that asks it, and the replica's side."""
