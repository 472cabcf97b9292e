"""Fixtures that several files of unit tests share, from tests/support."""

from tests.support.client import waits
from tests.support.ingress import serve
from tests.support.stitch import make_stitch

__all__ = ["make_stitch", "serve", "waits"]
