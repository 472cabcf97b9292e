"""Fixtures that several files of unit tests share; what they are made of stands in the `*_material.py` beside them."""

from tests.unit.air_material import air
from tests.unit.client_material import waits
from tests.unit.ingress_material import serve

__all__ = ["air", "serve", "waits"]
