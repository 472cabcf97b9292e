"""The health of Stitch: each of its render threads counts."""

import pytest

from deployments.common.errors import ReplicaFailedError
from tests.support.stitch import make_stitch

__all__ = ["make_stitch"]


@pytest.mark.parametrize("threads", [1, 3])
async def test_a_render_thread_that_fails_fails_the_replica(make_stitch, monkeypatch, threads):
    stitch, *_ = await make_stitch(threads=threads, hung_after_s=20.0)
    renderers = stitch._workers.workers
    assert len(renderers) == threads
    assert {worker.hung_after_s for worker in stitch.workers()} == {20.0}
    await stitch.check_health()
    monkeypatch.setattr(renderers[-1], "fault", lambda: "append has run for 31.0 s")
    with pytest.raises(ReplicaFailedError, match="append has run"):
        await stitch.check_health()
