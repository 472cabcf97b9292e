"""A Serve application that sends a file as the ingress does, for a client that never reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from ray import serve

from deployments.ingress.backpressure import SendQueues, paced_file
from deployments.ingress.node_queues import NodeQueues

FILE_BYTES = 400 * 2**20
api = FastAPI()
# All nodes of the test share this machine's table of connections. Without it, this node is one without the client.
QUEUES = {True: SendQueues((), NodeQueues()), False: SendQueues(())}
SENT = {True: 0, False: 0}  # bytes given to Serve, with and without the limit


@api.get("/file")
async def download(http: Request, limited: bool) -> StreamingResponse:
    """A file of zeros."""
    assert http.client is not None
    client = (http.client.host, http.client.port)

    async def parts() -> AsyncIterator[bytes]:
        file = Path("/dev/zero").open("rb")  # noqa: SIM115 - paced_file closes it
        async for part in paced_file(file, 0, FILE_BYTES, client, QUEUES[limited]):
            SENT[limited] += len(part)
            yield part

    return StreamingResponse(parts())


@api.get("/sent")
async def sent(limited: bool) -> int:
    return SENT[limited]


@serve.deployment
@serve.ingress(api)
class Files:
    pass


app = Files.bind()
