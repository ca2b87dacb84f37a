"""Both Python clients pass the cases in sdk/test_vectors.json; sdk/javascript/test/vectors.test.js runs the same ones."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import aimesh
import pytest
from aimesh import errors, retry_policy
from aimesh.retry_policy import FailedAttempt, RetryRules

from tests.cases import case
from tests.sdk.python.either_client import Stage, both, staged
from tests.sdk.python.scripted_server import END, ID, Reply, Then, event, events, failed, text, whole

VECTORS = json.loads((Path(__file__).parents[3] / "sdk" / "test_vectors.json").read_text(encoding="utf-8"))
THEN = {"break": Then.BREAK, "end": Then.END, "done": Then.END, "hang": Then.HANG}


def of_python(value: Any) -> Any:
    return value["python"] if isinstance(value, dict) else value


def test_errors() -> None:
    for vector in VECTORS["errors"]:
        with case(vector["name"]):
            error = errors.from_response(vector["status"], vector["headers"], json.dumps(vector["body"]).encode())
            assert type(error).__name__ == of_python(vector["class"])
            for name in ("status", "code", "hint", "request_id", "param"):
                assert getattr(error, name) == vector[name], name
            assert error.message == vector["message"] or vector["message"] is None
            assert error.retry_after == (None if vector["retry_after_ms"] is None else vector["retry_after_ms"] / 1000)


def test_retries() -> None:
    for vector in VECTORS["retries"]:
        with case(vector["name"]):
            content = {"message": "no", "code": vector["code"]}
            if vector["status"] is None:
                error = errors.from_event(content)
            else:
                headers = {} if vector["retry_after_ms"] is None else {"retry-after-ms": str(vector["retry_after_ms"])}
                error = errors.from_response(vector["status"], headers, json.dumps({"error": content}).encode())
            attempt = FailedAttempt(failures=vector["failures"], left_seconds=vector["left_ms"] / 1000, repeatable=True)
            pause = retry_policy.find_pause(error, attempt, RetryRules(max_retries=2), 0.5)
            assert (pause is not None) == vector["retried"]
            assert pause is None or pause * 1000 >= vector["at_least_ms"]


def scripted(reply: dict[str, Any]) -> Reply:
    if "answer" in reply:
        return whole()
    if "models" in reply:
        return Reply([json.dumps({"data": [{"id": "echo"}]}).encode()])
    if "hang_up" in reply:
        return Reply(head=b"", then=Then.BREAK)
    if "status" in reply:
        return failed(reply["status"], reply["code"], **{name.replace("-", "_"): value for name, value in reply["headers"].items()})
    parts = [text(reply["first"] + index, piece) for index, piece in enumerate(reply["pieces"])]
    if "error" in reply:
        parts.append(event({"error": {"message": "it ended", "code": reply["error"]}}))
    return events(*parts, *([END] if reply["then"] == "done" else []), then=THEN[reply["then"]])


async def outcome(stage: Stage, vector: dict[str, Any]) -> tuple[list[str] | None, str | None]:
    """Return the pieces of a stream and the code of the error."""
    seen: list[str] = []
    try:
        if vector["call"] == "stream":
            await stage.client.read("hi", most=vector["stop_after"], seen=seen)
        else:
            await stage.client.do(vector["call"], *(["hi"] if vector["call"] == "inference" else []))
    except aimesh.AimeshError as error:
        return seen or None, error.code
    return seen or None, None


def plain(tokens: tuple[aimesh.LogProbability, ...]) -> list[dict[str, Any]]:
    return [{"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes), "top": plain(one.top)} for one in tokens]


def content_of(answer: aimesh.Answer) -> dict[str, Any]:
    """Return the content of an answer, in the form of the vectors."""
    calls = [dataclasses.asdict(call) for call in answer.tool_calls]
    logprobs = plain(answer.logprobs)
    return {
        "text": answer.text, "finish_reason": answer.finish_reason, "tool_calls": calls, "logprobs": logprobs, "message": answer.message,
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
    }  # fmt: skip


@both
@pytest.mark.parametrize("vector", VECTORS["answers"], ids=lambda vector: vector["name"])
async def test_answers(kind: str, vector: dict[str, Any]) -> None:
    async with staged(kind, Reply([json.dumps(vector["whole"]).encode()])) as stage:
        assert content_of(await stage.client.inference("hi")) == vector["answer"]


@both
@pytest.mark.parametrize("vector", VECTORS["answers"], ids=lambda vector: vector["name"])
async def test_streams_that_break_after_each_piece(kind: str, vector: dict[str, Any]) -> None:
    parts = [f"id: {ID}-{number}\n".encode() + event(piece) for number, piece in enumerate(vector["pieces"], 1)]
    # Each connection sends one more piece, and repeats those before.
    broken = [events(*parts[: count + 1], then=Then.BREAK) for count in range(len(parts))]
    async with staged(kind, *broken, events(*parts, event(vector["end"]), b"data: [DONE]\n\n")) as stage:
        got = await stage.client.read("hi")
        assert got.texts == vector["texts"]
        assert got.answer is not None
        assert content_of(got.answer) == vector["answer"]
        sent = [one.headers.get("last-event-id") for one in stage.server.received if one.verb != "DELETE"]
        assert sent == [None, *(f"{ID}-{number}" for number in range(1, len(parts) + 1))]


@both
@pytest.mark.parametrize("vector", VECTORS["requests"], ids=lambda vector: vector["name"])
async def test_requests(kind: str, vector: dict[str, Any]) -> None:
    async with staged(kind, whole()) as stage:
        options = dict(vector["options"])
        await stage.client.inference(options.pop("prompt", None), **options)
        assert stage.server.received[0].body == vector["options"]


@both
@pytest.mark.parametrize("vector", VECTORS["quotas"], ids=lambda vector: vector["name"])
async def test_quotas(kind: str, vector: dict[str, Any]) -> None:
    async with staged(kind, Reply([json.dumps(vector["wire"]).encode()])) as stage:
        quota = await stage.client.do("quota")
    found = [part and dataclasses.asdict(part) for part in (quota.credits, quota.budget, quota.allowance)]
    if found[2]:
        found[2]["renews_at"] = f"{found[2]['renews_at']:%Y-%m-%dT%H:%M:%SZ}"
    assert found == [vector["credits"], vector["budget"], vector["allowance"]]


@both
@pytest.mark.parametrize("vector", VECTORS["calls"], ids=lambda vector: vector["name"])
async def test_calls(kind: str, vector: dict[str, Any]) -> None:
    async with staged(kind, *map(scripted, vector["replies"])) as stage:
        assert await outcome(stage, vector) == (vector["pieces"], vector["error"])
        sent = [one for one in stage.server.received if one.verb != "DELETE"]
        named: dict[str | None, str | None] = {None: None}
        keys = [named.setdefault(one.headers.get("idempotency-key"), chr(ord("a") + len(named) - 1)) for one in sent]
        assert keys == vector["keys"]
        ids = [None if number is None else f"{ID}-{number}" for number in vector["last_events"]]
        assert [one.headers.get("last-event-id") for one in sent] == ids
        assert bool(stage.server.withdrawn) == vector["canceled"]
        assert set(stage.server.withdrawn) <= {one.headers.get("idempotency-key") for one in sent}
