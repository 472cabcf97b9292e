"""Fixtures that several files of unit tests share; what they are made of stands in the `*_material.py` beside them."""

from tests.support.air import air
from tests.support.client import waits
from tests.support.ingress import serve

__all__ = ["air", "serve", "waits"]
