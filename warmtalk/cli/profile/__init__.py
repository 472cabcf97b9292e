"""`warmtalk profile`: what each stage costs, what limits it, and which settings fit a number of sessions."""
