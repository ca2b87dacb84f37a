"""One call from its first attempt to its end, against a script: no socket, no clock, no randomness."""

import json
from dataclasses import replace

import aimesh
import pytest
from aimesh import calls, conversations
from aimesh.actions import AnswerHead, EmitPiece, OpenRequest, Read, WireLost
from aimesh.answers import Answer
from aimesh.conversations import CallTerms, Conversation

from tests.sdk.python.scripted_server import COMMENT, END, ID, event, text
from tests.sdk.python.stage import CALL, EVENTS, JSON, LOST, STREAM, TERMS, WHOLE, Stage, Try, refusal

# --- whole answers --------------------------------------------------------------------------------------------------


def test_request_headers_and_body() -> None:
    stage = Stage(Try(pieces=[WHOLE[:10], WHOLE[10:]], headers=JSON))
    assert stage.infer().text == "hi"
    (opened,) = stage.played.opened
    assert (opened.verb, opened.path, opened.body, opened.seconds) == ("POST", "/api/inference", b'{"prompt":"hi"}', 100.0)
    assert opened.headers == {
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": "Bearer aip_live_x",
        "content-type": "application/json",
        "idempotency-key": "key-1",
        "user-agent": f"aimesh-client/{aimesh.__version__}",
    }


def test_retries_share_a_key_and_requests_have_their_own() -> None:
    stage = Stage(Try(lost=LOST), refusal(503, "overloaded"), Try(pieces=[WHOLE], headers=JSON), Try(pieces=[WHOLE], headers=JSON))
    stage.infer()
    stage.infer()
    assert stage.played.keys == ["key-1", "key-1", "key-1", "key-2"]
    assert stage.played.pauses == [1.0, 2.0]


def test_custom_key_is_sent_even_without_resume() -> None:
    stage = Stage(Try(pieces=[WHOLE], headers=JSON), Try(pieces=[text(1, "a"), END]))
    stage.infer(replace(TERMS, idempotency_key="mine"))
    stage.stream(replace(TERMS, idempotency_key="mine too", resume=False))
    assert stage.played.keys == ["mine", "mine too"]


def test_answer_interrupted_in_its_middle_is_requested_again() -> None:
    stage = Stage(Try(pieces=[WHOLE[:10], LOST], headers=JSON), Try(pieces=[WHOLE], headers=JSON))
    assert stage.infer().text == "hi"
    assert stage.played.keys == ["key-1", "key-1"]


def test_retry_after_is_honored() -> None:
    stage = Stage(refusal(429, "rate_limited", retry_after="7"), refusal(409, "in_progress", retry_after_ms="2500"), Try(pieces=[WHOLE]))
    stage.infer()
    assert stage.played.pauses == [7.0, 2.5]


def test_permanent_error_is_raised_immediately() -> None:
    stage = Stage(refusal(404, "unknown_model"))
    with pytest.raises(aimesh.UnknownModel):
        stage.infer()
    assert not stage.played.pauses


def test_retries_end() -> None:
    stage = Stage(*[Try(lost=WireLost("refused", may_have_arrived=False))] * 3)
    with pytest.raises(aimesh.ConnectionFailed, match=r"refused \(is http://mesh the right address") as failed:
        stage.infer()
    assert isinstance(failed.value.__cause__, WireLost)
    assert len(stage.played.opened) == 3


def test_no_retry_after_the_timeout() -> None:
    stage = Stage(*[Try(lost=LOST)] * 3, seconds_each=60)
    with pytest.raises(aimesh.DeadlineExceeded, match="no answer within 100 s"):
        stage.infer()
    assert [one.seconds for one in stage.played.opened] == [100.0, 39.0]


def test_unrepeatable_call_that_may_have_arrived_is_not_retried() -> None:
    stage = Stage(Try(lost=WireLost("refused", may_have_arrived=False)), Try(lost=LOST))
    with pytest.raises(aimesh.ConnectionFailed, match="reset"):
        stage.run(conversations.whole(calls.register("a", "b", "c"), stage.context, TERMS))
    assert stage.played.keys == [None, None]


def test_call_that_needs_a_key_is_not_sent_without_one() -> None:
    stage = Stage(api_key=None)
    with pytest.raises(aimesh.NotAuthenticated, match="AIMESH_API_KEY"):
        stage.infer()
    stage = Stage(Try(201, [json.dumps({"id": "1", "username": "a", "email": "b", "role": "user", "tier": "free"}).encode()]), api_key=None)
    assert stage.run(conversations.whole(calls.register("a", "b", "c"), stage.context, TERMS)).username == "a"
    assert "authorization" not in stage.played.opened[0].headers


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        pytest.param(Try(pieces=[b"<html>"]), "is not JSON", id="a page"),
        pytest.param(Try(pieces=[]), "is not JSON", id="nothing"),
        pytest.param(Try(pieces=[b'{"text": "\xff"}']), "is not JSON", id="no UTF-8"),
        pytest.param(Try(pieces=[b"{}"]), "the answer.response is missing", id="another object"),
        pytest.param(Try(302, [b""], {"location": "http://elsewhere"}), "answered 302", id="a redirect, which is not followed"),
        pytest.param(Try(400, [b"x" * 65_536] * 3), "more than 65536 bytes", id="an endless error"),
        pytest.param(Try(pieces=[b"x" * (32 * 1024 * 1024)] * 3), "more than 67108864 bytes", id="an endless answer"),
    ],
)
def test_response_that_is_not_from_aimesh(reply: Try, why: str) -> None:
    with pytest.raises(aimesh.ProtocolError, match=why):
        Stage(reply).infer()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 10**9])
def test_invalid_timeout(seconds: float) -> None:
    with pytest.raises(aimesh.BadRequest, match="timeout must be above 0"):
        CallTerms(seconds=seconds)


@pytest.mark.parametrize("key", ["", " a", "a ", "a\n", "ä", "x" * 256])
def test_key_that_fits_no_header(key: str) -> None:
    with pytest.raises(aimesh.BadRequest, match="idempotency_key"):
        CallTerms(seconds=1, idempotency_key=key)


# --- streamed answers -----------------------------------------------------------------------------------------------


def test_stream() -> None:
    stage = Stage(Try(pieces=[COMMENT, text(1, "three"), text(2, " small") + text(3, " words"), END]))
    answer = stage.stream()
    assert stage.played.texts == ["three", " small", " words"]
    assert (answer.text, answer.model, answer.usage.total_tokens) == ("three small words", "echo", 6)
    assert stage.played.opened[0].body == b'{"prompt":"hi","stream":true}'


@pytest.mark.parametrize("breaks", [[LOST], []], ids=["lost", "ended too early"])
def test_interrupted_stream_continues_after_its_last_piece(breaks: list[bytes | WireLost]) -> None:
    stage = Stage(
        Try(pieces=[*breaks]),
        Try(pieces=[text(1, "three"), *breaks]),
        Try(pieces=[text(2, " small"), text(3, " wo")[:-1], *breaks]),
        Try(pieces=[text(3, " words"), *breaks]),
        Try(pieces=[END]),
    )
    assert stage.stream().text == "three small words"
    assert "".join(stage.played.texts) == "three small words"
    assert stage.played.last_event_ids == [None, None, f"{ID}-1", f"{ID}-2", f"{ID}-3"]
    assert set(stage.played.keys) == {"key-1"}
    assert stage.played.pauses == [1.0] * 4, "what came through ends a row of failures"


def test_interruption_at_every_byte() -> None:
    pieces = [text(1, "grü"), text(2, "ße"), text(3, " 🐘")]
    content = b"".join(pieces) + END
    ends = [sum(map(len, pieces[:count])) for count in range(4)]
    for cut in range(len(content)):
        known = sum(cut >= end for end in ends[1:])
        stage = Stage(Try(pieces=[content[:cut], LOST]), Try(pieces=[b"".join(pieces[known:]) + END]))
        assert stage.stream().text == "".join(stage.played.texts) == "grüße 🐘", f"cut at {cut}"


def test_repeated_events_are_not_emitted_again() -> None:
    """A proxy that drops Last-Event-ID makes the gateway start over."""
    stage = Stage(Try(pieces=[text(1, "a"), text(2, "b"), LOST]), Try(pieces=[text(1, "a"), text(2, "b"), text(3, "c"), END]))
    assert stage.stream().text == "abc"
    assert stage.played.texts == ["a", "b", "c"]


def test_stopping_gateway_is_retried() -> None:
    stage = Stage(Try(pieces=[text(1, "a"), event({"error": {"code": "draining", "message": "bye"}})]), Try(pieces=[text(2, "b"), END]))
    assert stage.stream().text == "ab"


def test_final_error_of_the_gateway_is_raised_unchanged() -> None:
    stage = Stage(Try(pieces=[text(1, "a"), event({"error": {"code": "worker_lost", "message": "gone", "request_id": "r"}})]))
    with pytest.raises(aimesh.Unavailable, match="gone") as failed:
        stage.stream()
    assert (failed.value.code, failed.value.request_id) == ("worker_lost", "r")


@pytest.mark.parametrize(
    "later",
    [
        pytest.param([Try(lost=LOST)] * 2, id="nobody is there"),
        pytest.param([refusal(410, "answer_gone")], id="the rest is gone"),
        pytest.param([refusal(401, "not_authenticated")], id="the key was revoked meanwhile"),
        pytest.param([refusal(503, "overloaded")] * 2, id="it stays full"),
    ],
)
def test_remainder_that_cannot_be_resumed(later: list[Try]) -> None:
    stage = Stage(Try(pieces=[text(1, "some"), LOST]), *later)
    conversation = conversations.streamed(STREAM, stage.context, TERMS)
    with pytest.raises(aimesh.AnswerBroken, match="the answer broke off") as failed:
        stage.run(conversation)
    assert isinstance(failed.value.__cause__, aimesh.AimeshError)
    assert conversation.text == "some"
    with pytest.raises(RuntimeError, match="not complete yet"):
        _ = conversation.result


def test_stream_without_ids_or_resume_is_not_resumed() -> None:
    stage = Stage(Try(pieces=[event({"text": "a"}), LOST]))
    with pytest.raises(aimesh.AnswerBroken, match="the answer broke off: the connection failed: reset"):
        stage.stream()
    stage = Stage(Try(pieces=[text(1, "a"), LOST]))
    with pytest.raises(aimesh.AnswerBroken, match="the answer broke off: the connection failed: reset"):
        stage.stream(replace(TERMS, resume=False))
    assert stage.played.keys == [None]


def test_loss_after_the_complete_answer_changes_nothing() -> None:
    assert Stage(Try(pieces=[text(1, "a"), END, LOST])).stream().text == "a"


def test_unknown_events_of_a_newer_gateway_are_ignored() -> None:
    assert Stage(Try(pieces=[event({"waiting": "for a model"}), text(1, "a"), event({"thought": "x"}), END])).stream().text == "a"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        pytest.param(Try(headers=JSON, pieces=[WHOLE]), "not a stream of events", id="an answer in one piece"),
        pytest.param(Try(headers={}), "without a content type", id="nothing"),
        pytest.param(Try(pieces=[b"data: {\n\n"]), "an event is not JSON", id="no JSON"),
        pytest.param(Try(pieces=[b"data: \xff\n\n"]), "an event is not JSON", id="no UTF-8"),
        pytest.param(Try(pieces=[event({"text": 7})]), "an event.text must be a string", id="a text that is none"),
        pytest.param(Try(pieces=[event([1])]), "must be a JSON object", id="a list"),
        pytest.param(Try(pieces=[event({"finish_reason": "stop"})]), "is missing", id="half of an answer"),
        pytest.param(Try(pieces=[event({"error": "text"})]), "an event.error must be an object", id="an error that is none"),
        pytest.param(Try(pieces=[b"x" * 1_000_000] * 9), "more than 8388608 bytes", id="an endless line"),
        pytest.param(Try(pieces=[event({"text": "x" * 1_000_000})] * 80), "more than 67108864 bytes", id="an endless text"),
        pytest.param(
            Try(pieces=[event({"text": "", "logprobs": [{"token": "x" * 1_000_000, "logprob": 0.0, "bytes": []}]})] * 80),
            "more than 67108864 bytes",
            id="endless log probabilities",
        ),
    ],
)
def test_stream_that_is_not_from_aimesh(reply: Try, why: str) -> None:
    stage = Stage(reply)
    with pytest.raises(aimesh.ProtocolError, match=why):
        stage.stream()
    assert len(stage.played.opened) == 1


# --- leaving early --------------------------------------------------------------------------------------------------


def begun(stage: Stage, terms: CallTerms = TERMS) -> Conversation[Answer]:
    conversation = conversations.streamed(STREAM, stage.context, terms)
    opening = conversation.reply(None)
    assert isinstance(opening, OpenRequest)
    return conversation


def test_leaving_early_cancels_once_with_the_same_key() -> None:
    stage = Stage()
    conversation = begun(stage)
    assert isinstance(conversation.reply(AnswerHead(200, EVENTS)), Read)
    assert isinstance(conversation.reply(text(1, "a")), EmitPiece)
    cancellation = conversation.take_cancellation()
    assert cancellation is not None
    action = cancellation.reply(None)
    assert isinstance(action, OpenRequest)
    assert (action.verb, action.path, action.body, action.seconds) == ("DELETE", "/api/inference", None, 1.0)
    assert action.headers["idempotency-key"] == "key-1"
    assert cancellation.take_cancellation() is None
    assert conversation.take_cancellation() is None


def test_nothing_is_canceled_before_the_request_after_its_end_or_with_a_custom_key() -> None:
    stage = Stage(Try(pieces=[text(1, "a"), END]), refusal(401, "not_authenticated"))
    assert conversations.streamed(STREAM, stage.context, TERMS).take_cancellation() is None
    over = conversations.streamed(STREAM, stage.context, TERMS)
    stage.run(over)
    assert over.take_cancellation() is None
    refused = conversations.streamed(STREAM, stage.context, TERMS)
    with pytest.raises(aimesh.NotAuthenticated):
        stage.run(refused)
    assert refused.take_cancellation() is None
    assert begun(stage, replace(TERMS, idempotency_key="mine")).take_cancellation() is None
    assert begun(stage, replace(TERMS, resume=False)).take_cancellation() is None


@pytest.mark.parametrize(
    ("reply", "is_owed"),
    [
        (Try(lost=LOST), True), (refusal(503, "link_lost"), True), (refusal(409, "in_progress", retry_after="1"), True),
        (refusal(504, "deadline_exceeded"), True), (refusal(503, "overloaded"), False),
        (refusal(429, "rate_limited", retry_after="1"), False), (refusal(400, "bad_request"), False),
    ],
)  # fmt: skip
def test_giving_up_cancels_if_the_gateway_may_still_be_working(reply: Try, is_owed: bool) -> None:
    stage = Stage(*[reply] * 3)
    conversation = conversations.whole(CALL, stage.context, TERMS)
    with pytest.raises(aimesh.AimeshError):
        stage.run(conversation)
    assert (conversation.take_cancellation() is not None) == is_owed


def test_response_that_is_no_stream_is_still_canceled() -> None:
    stage = Stage(Try(pieces=[text(1, "a"), b"data: {\n\n"]))
    conversation = conversations.streamed(STREAM, stage.context, TERMS)
    with pytest.raises(aimesh.ProtocolError, match="an event is not JSON: Expecting property name enclosed in double"):
        stage.run(conversation)
    assert conversation.take_cancellation() is not None


def test_call_tied_to_its_connection_needs_no_cancellation() -> None:
    stage = Stage(*[Try(lost=LOST)] * 3)
    conversation = conversations.whole(calls.models(), stage.context, TERMS)
    with pytest.raises(aimesh.ConnectionFailed, match="the connection failed: reset"):
        stage.run(conversation)
    assert conversation.take_cancellation() is None
