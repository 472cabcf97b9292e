"""Fixtures that several files of unit tests share, from tests/support."""

import ssl
from collections.abc import Iterator
from functools import cache

import pytest

from tests.support.client import waits
from tests.support.ingress import serve
from tests.support.stitch import make_stitch

__all__ = ["make_stitch", "serve", "waits"]


@pytest.fixture(scope="session", autouse=True)
def one_tls_context() -> Iterator[None]:
    """All HTTP clients share a TLS context, which reads 25 ms of certificates; no unit test uses TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield
