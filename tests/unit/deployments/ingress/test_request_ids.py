"""The id of a request: in the header of the response, in its error, and in the calls of the stages; and its trace."""

import uuid

import pytest

from deployments.common.messages import SpeakRequest
from deployments.common.requests import request_id
from models.errors import BusyError
from tests.support.ingress import Handle, error_of

TRACE_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Stitch(Handle):
    """Records the request id in which it is called."""

    def _call(self, name, arguments):
        self.seen = request_id()
        return super()._call(name, arguments)


def test_an_id_that_the_caller_sent_is_used_everywhere(serve):
    stitch = Stitch(speak=[BusyError("It is full.")])
    answer = serve(stitch).post("/speak", json={"text": "Hi."}, headers={"X-Request-ID": "from-the-gateway:1"})
    assert answer.status_code == 429
    assert error_of(answer)["request_id"] == answer.headers["x-request-id"] == stitch.seen == "from-the-gateway:1"


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129, "ü"])
def test_without_an_id_that_logs_can_carry_one_is_made(serve, sent):
    answer = serve(Handle()).get("/nothing", headers={"X-Request-ID": sent.encode("latin-1")} if sent else {})
    made = error_of(answer)["request_id"]
    assert str(uuid.UUID(made)) == made == answer.headers["x-request-id"]


@pytest.mark.parametrize(("sent", "kept"), [(TRACE_PARENT, TRACE_PARENT), ("00-zz-1-01", ""), ("", "")])
def test_a_trace_context_is_passed_on_with_the_utterance(serve, sent, kept):
    stitch = Handle(speak=[BusyError("It is full.")])
    serve(stitch).post("/speak", json={"text": "Hi."}, headers={"traceparent": sent} if sent else {})
    ((_, (request,)),) = stitch.calls
    assert isinstance(request, SpeakRequest) and request.trace_parent == kept
