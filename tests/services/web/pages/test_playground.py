import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from litestar.types import ASGIApp

from services.web.pages import playground
from services.web.pages.playground import MAX_MESSAGES
from services.web.request_context import App
from shared import errors
from shared.api import accounts, gateway
from shared.api.gateway import ProcessInferenceRequest, ServedModel
from shared.api.generation import ReasoningEffort
from shared.types import FinishReason, ModelName
from tests.services.web.browser import SAME_ORIGIN, Browser
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.fake_models import RESULT
from tests.services.web.servers import serving
from tests.stopwatch import HANG_SECONDS

AWAY = errors.NotReachable("no node of that role is alive", hint="see `aicli stack status`")
HELLO: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "hello"}]}
SERVED = (
    ServedModel(ModelName("smollm2"), 1, 2048, aliases=("small",)),
    ServedModel(ModelName("large"), 1, 8192),
    ServedModel(ModelName("vectors"), 1, 512, only_embeds=True),
)


async def headers_of(browser: Browser) -> dict[str, str]:
    """Return the headers that the page's script sends with every request."""
    page = await browser.get("/playground")
    found = re.search(r'data-form-token="([^"]+)"', page.text)
    assert found is not None
    return SAME_ORIGIN | {"X-Form-Token": found[1]}


def read_events(text: str) -> list[tuple[str, Any]]:
    """Parse the events of a stream. Skips comments, like browsers."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


async def send(browser: Browser, question: dict[str, Any] = HELLO) -> httpx.Response:
    return await browser.client.post("/playground/answer", json=question, headers=await headers_of(browser))


def inference_calls(mesh: FakeMesh) -> list[ProcessInferenceRequest]:
    return [call.request for call in mesh.calls if isinstance(call.request, ProcessInferenceRequest)]


# --- The page ---------------------------------------------------------------------------------------------------------


def options(page: httpx.Response) -> list[tuple[str, bool]]:
    return [(name, bool(chosen)) for name, chosen in re.findall(r'<option value="([^"]+)"( selected)?>', page.text.split("</select>")[0])]


async def test_available_models_are_listed_with_the_default_chosen(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = SERVED
    assert options(await alice.get("/playground")) == [("smollm2", True), ("large", False)]


async def test_every_icon_has_a_name(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = SERVED
    text = (await alice.get("/playground")).text
    icons = re.findall(r"<button[^>]* class=\"[^\"]*\bicon\b[^\"]*\"[^>]*>.*?</button>", text, re.DOTALL)
    names = [re.search(r' aria-label="([^"]+)" title="([^"]+)"', each) for each in icons]
    shown = ", ".join(found[1] for found in names if found)
    assert shown == "Add images, Stop, Remove, Copy answer, Regenerate, Good answer, Bad answer"
    assert all(found and found[1] == found[2] for found in names)
    assert all('<svg viewBox="0 0 24 24" aria-hidden="true"' in each for each in icons)


@pytest.mark.parametrize(
    ("link", "preferred", "chosen"),
    [
        ("", "large", "large"),
        ("?model=small", "large", "smollm2"),
        ("?model=large", None, "large"),
        ("?model=vectors", None, "smollm2"),
        ("?model=gone", "gone", "smollm2"),
    ],
)
async def test_link_chooses_the_model_before_the_preference(
    alice: Browser, mesh: FakeMesh, link: str, preferred: str | None, chosen: str
) -> None:
    mesh.served = SERVED
    mesh.preferences = accounts.Preferences(default_model=ModelName(preferred) if preferred else None)
    assert (chosen, True) in options(await alice.get(f"/playground{link}"))


async def test_models_that_see_images_are_marked(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = (SERVED[0], ServedModel(ModelName("eyes"), 1, 2048, abilities=("images",)))
    text = (await alice.get("/playground")).text
    assert re.findall(r'<option value="(\w+)"[^>]* data-images>', text) == ["eyes"]


async def test_missing_models_are_reported(alice: Browser, mesh: FakeMesh) -> None:
    mesh.workers = 0
    page = await alice.get("/playground")
    assert page.status_code == 200
    assert "No chat model is available." in page.text
    assert "data-playground" not in page.text


@pytest.mark.parametrize(("path", "message"), [("/playground", "No chat model is available"), ("/models", "No models")])
async def test_pages_say_why_no_model_is_served(alice: Browser, mesh: FakeMesh, path: str, message: str) -> None:
    mesh.workers, mesh.why_none = 0, "UABC… smollm2: the engine is being built, about 2 min left"
    assert f"{message}: UABC… smollm2: the engine is being built, about 2 min left." in (await alice.get(path)).text


async def test_unavailable_gateway_is_reported(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = AWAY
    page = await alice.get("/playground")
    assert page.status_code == 200
    assert "isn’t responding" in page.text


async def test_model_names_are_escaped(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = (ServedModel(ModelName('"><script>alert(1)</script>'), 1, 2048),)
    assert "<script>alert" not in (await alice.get("/playground")).text


# --- Answers ----------------------------------------------------------------------------------------------------------


async def test_answer_streams_and_ends_with_its_usage(alice: Browser, mesh: FakeMesh) -> None:
    answer = await send(alice)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    took = {
        "request_id": str(RESULT.request_id),
        "prompt_tokens": 12,
        "completion_tokens": 31,
        "cost": "0.01234",
        "tokens_per_second": 30.0,
    }
    began = {"request_id": str(RESULT.request_id)}
    assert read_events(answer.text) == [("began", began), ("chunk", {"text": "Hello "}), ("chunk", {"text": "there."}), ("usage", took)]


async def test_input_reaches_the_gateway_with_the_users_credential(alice: Browser, mesh: FakeMesh) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    await send(alice, HELLO | {"messages": messages, "system": "Be brief.", "temperature": 0, "max_tokens": 7, "top_p": 0.5, "seed": 3})
    (sent,) = inference_calls(mesh)
    request = sent.request
    assert [(each.role, each.content) for each in request.messages] == [
        ("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"),
    ]  # fmt: skip
    assert (request.model, request.temperature, request.max_tokens, request.top_p, request.seed) == ("smollm2", 0, 7, 0.5, 3)
    credential = next(each.credential for each in mesh.calls if each.request is sent)
    assert credential is not None


async def test_waiting_messages_are_streamed(alice: Browser, mesh: FakeMesh) -> None:
    mesh.waiting = "loading smollm2 …"
    (named, _), waiting, *_ = read_events((await send(alice)).text)
    assert (named, waiting) == ("began", ("waiting", {"message": "loading smollm2 …"}))


async def test_thoughts_are_events_and_are_sent_back(alice: Browser, mesh: FakeMesh) -> None:
    mesh.pieces, mesh.thoughts = ("Let me ", "think.", "Hi"), 2
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "hm"},
        {"role": "user", "content": "c"},
    ]
    events = read_events((await send(alice, HELLO | {"messages": messages, "reasoning_effort": "low"})).text)
    assert [(name, facts["text"]) for name, facts in events[1:-1]] == [("thought", "Let me "), ("thought", "think."), ("chunk", "Hi")]
    (sent,) = inference_calls(mesh)
    assert (sent.request.messages[1].reasoning, sent.request.reasoning_effort) == ("hm", ReasoningEffort.LOW)


async def test_images_reach_the_gateway_before_their_text(alice: Browser, mesh: FakeMesh, site: App) -> None:
    image = bytes(4 << 20)
    messages = [{"role": "user", "content": "What?", "images": [base64.b64encode(image).decode(), "aGk="]}]
    assert read_events((await send(alice, HELLO | {"messages": messages})).text)[-1][0] == "usage"
    (sent,) = inference_calls(mesh)
    assert [(each.data, each.at) for each in sent.request.messages[0].images] == [(image, 0), (b"hi", 0)]
    assert (site.memory.held_bytes, len(site.uploads)) == (0, 0)


async def test_images_are_refused_if_too_many_are_in_progress(alice: Browser, mesh: FakeMesh, site: App) -> None:
    with site.memory.hold(256 << 20):
        answer = await send(alice, HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, errors.Overloaded.code)
    assert answer.headers["retry-after"] == "2"
    assert inference_calls(mesh) == []


async def test_refusal_of_the_gateway_is_streamed_with_its_hint(alice: Browser, mesh: FakeMesh) -> None:
    refusal = errors.BudgetExhausted("there are no credits left", hint="ask an administrator for more")
    mesh.failures = [(0, refusal)]
    ((name, problem),) = read_events((await send(alice)).text)
    assert (name, problem["code"], problem["message"], problem["hint"]) == (
        "problem", refusal.code, refusal.message, refusal.hint,
    )  # fmt: skip


async def test_answer_resumes_after_its_gateway_is_lost(alice: Browser, mesh: FakeMesh) -> None:
    mesh.pieces = ("one ", "two ", "three")
    mesh.failures = [(2, errors.LinkLost("the link was lost"))]
    events = read_events((await send(alice)).text)
    assert [facts["text"] for name, facts in events if name == "chunk"] == ["one ", "two ", "three"]
    assert events[-1][0] == "usage"
    first, second = inference_calls(mesh)
    assert (first.rest, second.rest) == (None, gateway.Rest(2))
    assert first.idempotency_key == second.idempotency_key


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({}, ""),
        ({"cached": True}, "Served from cache."),
        ({"finish_reason": FinishReason.LENGTH}, "Stopped at the max tokens limit."),
        ({"finish_reason": FinishReason.LENGTH, "clamped_to": 31}, "Stopped: you’re out of credits."),
    ],
)
def test_finish_note_of_an_answer(change: dict[str, Any], note: str) -> None:
    assert playground.describe_usage(msgspec.structs.replace(RESULT, **change)).note == note


def test_speed_is_shown_only_if_measurable() -> None:
    assert playground.describe_usage(RESULT).tokens_per_second == 30.0
    for change in ({"cached": True}, {"response_time_ms": 40}, {"usage": gateway.Usage(1, 1)}):
        assert playground.describe_usage(msgspec.structs.replace(RESULT, **change)).tokens_per_second is None


# --- Leaving the page -------------------------------------------------------------------------------------------------


@pytest.fixture
async def real(app: ASGIApp, mesh: FakeMesh) -> AsyncIterator[Browser]:
    """A browser with a real connection, which it can close."""
    user = mesh.add_account("bob", "correct horse")
    async with serving(app) as origin, httpx.AsyncClient(base_url=origin, cookies={"aimesh_session": mesh.add_session(user)}) as client:
        yield Browser(client)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_pieces_are_sent_immediately_and_leaving_stops_the_generation(real: Browser, mesh: FakeMesh) -> None:
    mesh.gate.clear()
    async with real.client.stream("POST", "/playground/answer", json=HELLO, headers=await headers_of(real)) as answer:
        text = ""
        async for piece in answer.aiter_text():
            text += piece
            if "Hello" in text:
                break
        assert mesh.running == 1
    await mesh.left.wait()
    await until(lambda: bool(mesh.cancelled))
    # The gateway continues requests with an idempotency key, so web must cancel them explicitly.
    assert mesh.cancelled == [inference_calls(mesh)[0].idempotency_key]
    assert mesh.running == 0


async def test_bug_cuts_off_the_answer_and_reveals_nothing(real: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(playground, "describe_usage", broken)
    text = ""
    headers = await headers_of(real)
    with pytest.raises(httpx.RemoteProtocolError):
        async with real.client.stream("POST", "/playground/answer", json=HELLO, headers=headers) as answer:
            async for piece in answer.aiter_text():
                text += piece
    # The stream ends without usage, so the page's script knows that the answer was interrupted.
    assert [name for name, _ in read_events(text)] == ["began", "chunk", "chunk"]
    assert "secret" not in text


async def test_complete_answer_is_not_canceled(real: Browser, mesh: FakeMesh) -> None:
    answer = await real.client.post("/playground/answer", json=HELLO, headers=await headers_of(real))
    assert read_events(answer.text)[-1][0] == "usage"
    assert mesh.cancelled == []


async def test_fifth_concurrent_answer_is_refused_until_one_ends(real: Browser, mesh: FakeMesh, site: App) -> None:
    mesh.gate.clear()
    headers = await headers_of(real)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(real.client.post("/playground/answer", json=HELLO, headers=headers)) for _ in range(4)]
        await until(lambda: mesh.running == 4)
        ((name, problem),) = read_events((await real.client.post("/playground/answer", json=HELLO, headers=headers)).text)
        assert (name, problem["code"]) == ("problem", errors.Overloaded.code)
        mesh.gate.set()
    assert [read_events(each.result().text)[-1][0] for each in running] == ["usage"] * 4
    assert read_events((await real.client.post("/playground/answer", json=HELLO, headers=headers)).text)[-1][0] == "usage"


# --- Refused requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    [
        pytest.param({}, id="nothing"),
        pytest.param(HELLO | {"messages": []}, id="no message"),
        pytest.param(HELLO | {"messages": [{"role": "assistant", "content": "hi"}]}, id="no question at the end"),
        pytest.param(HELLO | {"messages": [{"role": "system", "content": "x"}]}, id="a role that nobody has here"),
        pytest.param(HELLO | {"messages": [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)}, id="too many messages"),
        pytest.param(HELLO | {"messages": [{"role": "user", "content": "x", "images": ["no base64"]}]}, id="no image"),
        pytest.param(HELLO | {"max_tokens": 1.5}, id="half a token"),
        pytest.param(HELLO | {"temperature": "hot"}, id="a word for a number"),
        pytest.param(HELLO | {"tools": []}, id="a field that it does not have"),
    ],
)
async def test_invalid_question_is_refused(alice: Browser, mesh: FakeMesh, question: dict[str, Any]) -> None:
    answer = await send(alice, question)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert answer.json()["error"]["hint"]
    assert inference_calls(mesh) == []


async def test_long_chat_fits_and_a_longer_one_is_refused(alice: Browser, mesh: FakeMesh) -> None:
    long = HELLO | {"messages": [{"role": "user", "content": "x" * 200_000}]}
    assert (await send(alice, long)).status_code == 200
    longer = HELLO | {"messages": [{"role": "user", "content": "x" * playground.MAX_BODY_BYTES}]}
    answer = await send(alice, longer)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "too large for this page" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/playground/answer", "/playground/feedback"])
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"X-Form-Token": ""}, id="without a token"),
        pytest.param({"X-Form-Token": "x" * 43}, id="with a token of nobody"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, id="from another site"),
    ],
)
async def test_questions_are_same_origin_only(alice: Browser, mesh: FakeMesh, path: str, wrong: dict[str, str]) -> None:
    content = HELLO if path.endswith("answer") else {"request_id": str(UUID(int=1)), "rating": "up"}
    answer = await alice.client.post(path, json=content, headers=await headers_of(alice) | wrong)
    assert answer.status_code in (400, 403)
    assert inference_calls(mesh) == []
    assert mesh.ratings == []


@pytest.mark.parametrize("path", ["/playground/answer", "/playground/feedback"])
async def test_questions_need_a_session(browser: Browser, mesh: FakeMesh, path: str) -> None:
    answer = await browser.client.post(path, json=HELLO, headers=SAME_ORIGIN)
    assert answer.status_code in (303, 401)
    assert inference_calls(mesh) == []


# --- Ratings ----------------------------------------------------------------------------------------------------------


async def test_rating_is_sent_for_the_request(alice: Browser, mesh: FakeMesh) -> None:
    headers = await headers_of(alice)
    for thumb in ("up", "down"):
        answer = await alice.client.post("/playground/feedback", json={"request_id": str(UUID(int=9)), "rating": thumb}, headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
    assert mesh.ratings == [(UUID(int=9), 1), (UUID(int=9), -1)]


@pytest.mark.parametrize("content", [{"request_id": "nine", "rating": "up"}, {"request_id": str(UUID(int=9)), "rating": "best"}])
async def test_invalid_rating_is_refused(alice: Browser, mesh: FakeMesh, content: dict[str, str]) -> None:
    answer = await alice.client.post("/playground/feedback", json=content, headers=await headers_of(alice))
    assert answer.status_code == 400
    assert mesh.ratings == []


async def test_rating_refused_by_the_gateway_is_an_error(alice: Browser, mesh: FakeMesh) -> None:
    headers = await headers_of(alice)
    mesh.broken["gateway"] = AWAY
    answer = await alice.client.post("/playground/feedback", json={"request_id": str(UUID(int=9)), "rating": "up"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, AWAY.code)
