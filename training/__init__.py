"""How `models/embedded` was made, as commands that anyone with one GPU can run again."""
