"""Spans of utterances for OpenTelemetry, from the calls that Stitch records anyway, sent over OTLP/HTTP.

One trace per utterance: a span for the utterance, and one below it per call of a stage. An utterance whose request had
a `traceparent` header (W3C Trace Context) belongs to that trace. OpenTelemetry's own environment variables
(OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS …) apply.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deployments.common.messages import SpeakRequest
from deployments.common.requests import request_id
from deployments.common.stage import replica_id
from deployments.stitch.metrics import CALL_PARTS, StageCall
from models.errors import ConfigError, InterruptedSpeech, WarmTalkError

if TYPE_CHECKING:
    from deployments.stitch.utterance_run import UtteranceRun

TRACES = "/v1/traces"  # the path of OTLP/HTTP for spans
MAX_QUEUE = 2**16  # spans that wait to be sent; an utterance of ten minutes has about 6,000


class Spans:
    """Exports nothing without an endpoint. Raises ConfigError if there is one and the exporter is not installed."""

    def __init__(self, endpoint: str | None = None) -> None:
        """endpoint: of a collector, such as `http://collector:4318`."""
        self._provider: Any = None
        self._thread = ThreadPoolExecutor(1, "spans")  # a long utterance has thousands of calls
        if endpoint is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                "otlp_endpoint of Stitch is set, but OpenTelemetry's exporter is not installed.",
                "Run `pip install 'warmtalk[tracing]'` where the replicas run, or remove otlp_endpoint.",
            ) from error
        url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES
        resource = Resource.create({SERVICE_NAME: "warmtalk", SERVICE_INSTANCE_ID: replica_id()})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url), max_queue_size=MAX_QUEUE))

    def close(self) -> Future[None]:
        """Export nothing more. The future is done when all that waited is sent, or could not be sent."""
        done = self._thread.submit(lambda: self._provider and self._provider.shutdown())
        self._thread.shutdown(wait=False)
        return done

    @contextmanager
    def utterance(self, run: UtteranceRun, request: SpeakRequest) -> Iterator[None]:
        """Export the utterance that the block makes, however it ends."""
        start_s = time.time() - (time.perf_counter() - run.requested_s)
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            if self._provider is not None:
                facts = {"request_id": request_id(), "session_id": request.session_id, **run.facts()}
                calls = (*run.pipeline.calls, *run.renderer.calls)
                arguments = (calls, request.trace_parent, start_s, time.time(), facts, failure)
                with suppress(RuntimeError):  # closed meanwhile, because the endpoint was changed
                    self._thread.submit(self._export, *arguments)

    def _export(
        self,
        calls: tuple[StageCall, ...],
        trace_parent: str,
        start_s: float,
        end_s: float,
        facts: dict[str, Any],
        failure: BaseException | None,
    ) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer = self._provider.get_tracer("warmtalk")
        parent = TraceContextTextMapPropagator().extract({"traceparent": trace_parent})
        whole = tracer.start_span(
            "utterance", parent, SpanKind.SERVER, attributes=_named(facts), start_time=_nanoseconds(start_s)
        )
        if isinstance(failure, Exception) and not isinstance(failure, InterruptedSpeech):
            code = failure.code if isinstance(failure, WarmTalkError) else type(failure).__name__
            whole.set_status(Status(StatusCode.ERROR, f"{code}: {failure}"))
        below = set_span_in_context(whole)
        for call in calls:
            parts = {name: round(getattr(call, name), 3) for name in CALL_PARTS}
            about = _named({"replica": call.replica, "frames": call.frames, **parts})
            span = tracer.start_span(call.stage, below, attributes=about, start_time=_nanoseconds(call.start_s))
            span.end(_nanoseconds(call.start_s + call.wall_ms / 1e3))
        whole.end(_nanoseconds(end_s))


def _named(facts: dict[str, Any]) -> dict[str, Any]:
    return {f"warmtalk.{name}": value for name, value in facts.items() if value is not None}


def _nanoseconds(time_s: float) -> int:
    return round(time_s * 1e9)
