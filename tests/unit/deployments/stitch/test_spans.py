"""Utterances as spans over OTLP/HTTP, received by a collector in this process."""

import asyncio
import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deployments.common.messages import SpeakRequest
from deployments.common.requests import use_request_id
from deployments.stitch.spans import Spans
from models.errors import ConfigError, TextError
from tests.support.stitch import summary_of

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector():
    """A collector: `.url`, and `.spans` as it received them."""
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            sent = trace_service.ExportTraceServiceRequest.FromString(body)
            assert self.path == "/v1/traces"
            parts = [part for resource in sent.resource_spans for part in resource.scope_spans]
            server.spans += [span for part in parts for span in part.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Do not log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collect)
    server.spans, server.url = [], f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def values(span) -> dict:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_an_utterance_is_a_span_with_one_span_per_call_of_a_stage(make_stitch, collector):
    stitch, _, _ = await make_stitch(otlp_endpoint=collector.url)
    use_request_id("r-1")
    request = SpeakRequest("alice", "x" * 30, calls=True, trace_parent=f"00-{TRACE_ID}-{PARENT_ID}-01")
    summary = await summary_of(stitch.speak(request))
    await asyncio.wrap_future(stitch._spans.close())
    assert summary["request_id"] == "r-1"
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
    (whole,) = (span for span in collector.spans if span.name == "utterance")
    assert whole.parent_span_id.hex() == PARENT_ID
    facts = values(whole)
    assert (facts["warmtalk.request_id"], facts["warmtalk.session_id"]) == ("r-1", "alice")
    assert facts["warmtalk.frames"] == summary["frames"] and facts["warmtalk.retries"] == 0
    calls = [span for span in collector.spans if span is not whole]
    assert {span.parent_span_id for span in calls} == {whole.span_id}
    assert sorted(span.name for span in calls) == sorted(call["stage"] for call in summary["calls"])
    for span in calls:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        wall_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert wall_ms == pytest.approx(values(span)["warmtalk.wall_ms"], abs=0.01)


async def test_a_failed_utterance_is_a_span_with_its_error(make_stitch, collector):
    stitch, _, _ = await make_stitch(otlp_endpoint=collector.url)
    with pytest.raises(TextError):
        await summary_of(stitch.speak(SpeakRequest("alice", "a bad text")))
    await asyncio.wrap_future(stitch._spans.close())
    (whole,) = (span for span in collector.spans if span.name == "utterance")
    assert whole.status.message.startswith("bad_text") and not whole.parent_span_id


async def test_the_endpoint_can_change_while_an_utterance_is_made_and_after_one_that_cannot_be_used(
    make_stitch, collector, monkeypatch
):
    stitch, _, _ = await make_stitch(otlp_endpoint=collector.url)
    events = stitch.speak(SpeakRequest("alice", "x" * 30))
    await anext(events)
    config = stitch.config.model_dump()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
        with pytest.raises(ConfigError):
            await stitch.reconfigure(config | {"otlp_endpoint": "http://127.0.0.1:9"})
    await stitch.reconfigure(config | {"otlp_endpoint": None})
    assert (await summary_of(events))["frames"] > 0


def test_a_missing_exporter_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'warmtalk\[tracing\]'"):
        Spans("http://127.0.0.1:4318")
