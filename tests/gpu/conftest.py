"""Lets these tests use the weights that the unit tests make."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "unit"))
