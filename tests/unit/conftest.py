"""Fixtures that several files of unit tests share, from tests/support."""

from tests.support.air import air
from tests.support.client import waits
from tests.support.ingress import serve

__all__ = ["air", "serve", "waits"]
