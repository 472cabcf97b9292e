"""The command line: `warmtalk say`, `serve`, `prepare` and the other commands."""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_BUNDLED = _PACKAGE / "_server"  # in a wheel; in a checkout the same files are at the repository's root

CODE = _BUNDLED if _BUNDLED.is_dir() else _PACKAGE.parent  # contains graph.py, models/, deployments/, configs/ and web/

if str(CODE) not in sys.path:
    sys.path.insert(0, str(CODE))


def main() -> None:
    """Entry point of the `warmtalk` command. Names the package to install when an import fails."""
    try:
        from warmtalk.cli.app import app
    except ModuleNotFoundError as error:
        from warmtalk.cli.packages import missing_package

        message, remedy = missing_package(error)
        sys.exit(f"{message}\n→ {remedy}")
    app()
