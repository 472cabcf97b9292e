"""The command line: `warmtalk say`, `serve`, `prepare` and the other commands."""

import sys
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]  # holds graph.py, models/, deployments/, configs/ and web/

if str(CODE) not in sys.path:
    sys.path.insert(0, str(CODE))
