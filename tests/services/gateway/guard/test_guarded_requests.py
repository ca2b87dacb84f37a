"""Requests under guardrails: what workers see, what callers get, and what is recorded."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.guard.guard_reporting import GuardReporting
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from shared import context, errors
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import ChatMessage, GenerationEnd, Tool, ToolCall, ToolCallPart, Usage
from shared.api.inference import Chunk
from shared.config_documents import PolicyDocument
from shared.stores.cache import Cache
from shared.types import FinishReason, KeyId, ModelName, RequestStatus
from tests.services.gateway import fakes, thinking
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService
from tests.services.gateway.pulled import PulledRuns
from tests.services.gateway.requests.test_embedding_runs import EmbeddingWorker
from tests.services.gateway.thinking import Thinks
from tests.stopwatch import HANG_SECONDS
from tests.testnet import until

CARD = "4111 1111 1111 1111"
KEYED = msgspec.structs.replace(OWNER, key_id=KeyId(UUID(int=77)))


class Acts:
    """Records what is reported to the audit log."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, dict[str, str]]] = []

    def report_action(self, action: str, by: Principal, *, tenant: object, target: object, **details: str) -> None:
        assert tenant == by.tenant_id
        self.found.append((action, str(target), details))


class Guarded:
    def __init__(self, service: RunningService, responses: ResponseCache) -> None:
        self.service = service
        self.acts = Acts()
        self.reporting = GuardReporting(service.metrics, self.acts)  # type: ignore[arg-type]
        self.pulled = PulledRuns(service.new_runs(responses=responses, on_guarded=self.reporting.record_end))

    def use(self, **documents: dict[str, Any]) -> None:
        """Set the guardrails of each level."""
        found = {name.replace("__", ":"): msgspec.convert({"guard": guard}, PolicyDocument) for name, guard in documents.items()}
        config = self.service.config
        self.service.config = ConfigSnapshot(
            names=config.names, route_names=config.route_names, limits=config.limits, policies=Policies(found)
        )

    def says(self, *words: str) -> None:
        self.service.worker.words = words

    async def ask(self, prompt: str = "hi", who: Principal = OWNER, **fields: Any) -> tuple[str, InferenceResult]:
        context.start()
        request = InferenceRequest(**({"prompt": prompt} if "messages" not in fields else {}), **fields)
        async with self.pulled.run(who, request, seconds=10) as running:
            text = "".join([chunk.text async for _, chunk in running])
        return text, running.result

    @property
    def prompts(self) -> Sequence[str]:
        return ["\n".join(message.content for message in one.prompt) for one in self.service.worker.received]  # type: ignore[union-attr]

    @property
    def counts(self) -> list[tuple[str, str, str, int]]:
        row = list(self.service.store.rows.values())[-1]
        return [(one.place, one.kind, one.action, one.matches) for one in row.guard]


@pytest.fixture
async def guarded(valkey_url: str) -> AsyncIterator[Guarded]:
    bounds = CacheBounds(keep_seconds=60, most_bytes=2**20, most_seconds=10)
    async with fakes.running_service(free=1_000_000) as service, Cache.open(valkey_url) as values, Recorders().running() as recorders:
        yield Guarded(service, ResponseCache(values, recorders, service.metrics, bounds, secret="s" * 16))


async def test_a_worker_gets_a_masked_prompt(guarded: Guarded) -> None:
    guarded.use(mesh={"prompt": {"card": "mask", "email": "report"}})
    await guarded.ask(f"pay {CARD} from a@b.example")
    assert guarded.prompts == ["pay [card] from a@b.example"]
    assert guarded.counts == [("prompt", "card", "mask", 1), ("prompt", "email", "report", 1)]


async def test_messages_and_arguments_of_tools_are_masked(guarded: Guarded) -> None:
    guarded.use(mesh={"prompt": {"card": "mask"}})
    call = ToolCall("1", "pay", f'{{"number": "{CARD}"}}')
    messages = (ChatMessage("system", f"our card is {CARD}"), ChatMessage("assistant", "", (call,)), ChatMessage("tool", "ok", (), "1"))
    await guarded.ask(messages=(*messages, ChatMessage("user", "and now?")))
    (prompt,) = guarded.service.worker.received
    assert [message.content for message in prompt.prompt] == ["our card is [card]", "", "ok", "and now?"]  # type: ignore[union-attr]
    assert prompt.prompt[1].tool_calls[0].arguments == '{"number":"[card]"}'  # type: ignore[union-attr]
    assert guarded.counts == [("prompt", "card", "mask", 2)]


async def test_a_refused_prompt_names_message_and_kind_but_no_text(guarded: Guarded) -> None:
    guarded.use(mesh={"prompt": {"card": "refuse", "email": "mask"}})
    messages = (ChatMessage("system", "be kind"), ChatMessage("user", f"a@b.example: {CARD}"))
    with pytest.raises(errors.ContentFiltered) as refused:
        await guarded.ask(messages=messages)
    assert refused.value.message == "messages[1].content contains what your policy refuses: card"
    row = guarded.service.store.only_row
    assert (row.status, row.error_code, row.cost_micro) == (RequestStatus.REJECTED, "content_filter", 0)
    assert guarded.counts == [("prompt", "card", "refuse", 1), ("prompt", "email", "mask", 1)]
    assert guarded.service.worker.received == []
    assert guarded.acts.found == [("guard.refuse", str(row.id), {"kinds": "card", "place": "prompt"})]


async def test_an_answer_is_masked_over_its_chunks_and_billed_as_sent(guarded: Guarded) -> None:
    guarded.use(mesh={"answer": {"card": "mask"}})
    guarded.says("Pay", " 4111", " 1111", " 1111 11", "11", " now", ".")
    text, result = await guarded.ask()
    assert text == "Pay [card] now."
    assert (result.finish_reason, result.usage.completion_tokens) == (FinishReason.STOP, 7)
    assert guarded.counts == [("answer", "card", "mask", 1)]


SECRET_CALL = f'{{"card":"{CARD}"}}'
THOUGHTS = (
    Chunk("", (1,), reasoning="Their card is 4111 1111"),
    Chunk("", (2,), reasoning=" 1111 1111"),
    Chunk("Pay", (3,), reasoning=". So"),
    Chunk("", (4,), call_parts=(ToolCallPart(0, SECRET_CALL[:20], "c", "pay"),)),
    Chunk("", (5,), call_parts=(ToolCallPart(0, SECRET_CALL[20:]),)),
)


async def read_all(guarded: Guarded, **fields: Any) -> tuple[tuple[str, str, tuple[ToolCall, ...]], FinishReason]:
    context.start()
    request = InferenceRequest(prompt="hi", tools=(Tool("pay"),), **fields)
    async with guarded.pulled.run(OWNER, request, seconds=10) as running:
        found = thinking.read([chunk async for _, chunk in running])
    return found, running.result.finish_reason


@pytest.mark.parametrize("last", [(), (Chunk("", (6,), finish=FinishReason.STOP),)])
async def test_thoughts_and_arguments_in_parts_are_masked(guarded: Guarded, last: tuple[Chunk, ...]) -> None:
    guarded.use(mesh={"answer": {"card": "mask"}})
    guarded.service.add_worker(1, Thinks(chunks=(*THOUGHTS, *last)), "smollm2")
    masked = ("Their card is [card]. So", "Pay", (ToolCall("c", "pay", '{"card":"[card]"}'),))
    assert await read_all(guarded) == (masked, FinishReason.STOP)
    assert guarded.counts == [("answer", "card", "mask", 2)]
    guarded.use(mesh={"answer": {"card": "report"}})
    as_sent = ("Their card is 4111 1111 1111 1111. So", "Pay", (ToolCall("c", "pay", SECRET_CALL),))
    assert await read_all(guarded) == (as_sent, FinishReason.STOP)
    assert guarded.counts == [("answer", "card", "report", 2)]


async def test_a_refused_thought_ends_the_answer(guarded: Guarded) -> None:
    guarded.use(mesh={"answer": {"card": "refuse"}})
    guarded.service.add_worker(1, Thinks(chunks=THOUGHTS), "smollm2")
    assert await read_all(guarded) == (("Their card is ", "", ()), FinishReason.CONTENT_FILTER)
    guarded.service.add_worker(1, Thinks(chunks=THOUGHTS[3:]), "smollm2")
    assert await read_all(guarded) == (("", "", ()), FinishReason.CONTENT_FILTER)


async def test_thoughts_that_are_sent_back_are_masked(guarded: Guarded) -> None:
    guarded.use(mesh={"prompt": {"card": "mask"}})
    await guarded.ask(messages=(ChatMessage("assistant", "yes", reasoning=f"it is {CARD}"), ChatMessage("user", "hi")))
    assert guarded.service.worker.received[0].prompt[0] == ChatMessage("assistant", "yes", reasoning="it is [card]")


async def test_a_cached_answer_has_its_thoughts_and_calls(guarded: Guarded) -> None:
    guarded.service.add_worker(1, worker := Thinks(), "smollm2")
    answers = [await read_all(guarded, seed=7) for _ in range(2)]
    assert answers == [((thinking.THOUGHTS, thinking.TEXT, thinking.CALLS), FinishReason.STOP)] * 2
    assert 'ai_platform_reasoning_tokens_total{model="smollm2"} 4.0' in guarded.service.metrics.render()
    assert len(worker.received) == 1


async def test_a_refused_answer_ends_before_the_match_and_the_worker_stops(guarded: Guarded) -> None:
    guarded.use(mesh={"answer": {"card": "refuse"}})
    worker = guarded.service.worker
    worker.words, worker.hangs_after = ("Pay ", CARD, " now", " and", " never"), 4
    async with asyncio.timeout(HANG_SECONDS):
        text, result = await guarded.ask()
    assert text == "Pay "
    assert (result.finish_reason, result.usage.completion_tokens) == (FinishReason.CONTENT_FILTER, 4)
    await until(lambda: worker.left_early == 1)
    row = guarded.service.store.only_row
    assert (row.status, row.completion_tokens) == (RequestStatus.SUCCESS, 4)
    assert [action for action, _, _ in guarded.acts.found] == ["guard.refuse"]


async def test_a_refused_answer_ends_no_other_of_its_request(guarded: Guarded) -> None:
    class Both(FakeWorker):
        async def run(self, prompt: Any) -> AsyncIterator[Chunk | GenerationEnd]:
            for answer, words in enumerate((("Pay ", CARD, " now", " and", "."), ("Fine", " so", " far", " and", "."))):
                for word in words:
                    yield Chunk(word, (1,), answer=answer)
            yield GenerationEnd(FinishReason.STOP, Usage(7, 10), (FinishReason.STOP, FinishReason.STOP))

    guarded.use(mesh={"answer": {"card": "refuse"}})
    guarded.service.add_worker(1, Both(), "smollm2")
    context.start()
    texts = ["", ""]
    async with guarded.pulled.run(OWNER, InferenceRequest(prompt="hi", n=2), seconds=10) as running:
        async for _, chunk in running:
            texts[chunk.answer] += chunk.text
    assert texts == ["Pay ", "Fine so far and."]
    assert running.result.finish_reasons == (FinishReason.CONTENT_FILTER, FinishReason.STOP)


async def test_a_cached_answer_is_guarded_by_the_policy_of_now(guarded: Guarded) -> None:
    guarded.use(mesh={})
    guarded.says("Pay ", CARD, "!")
    assert (await guarded.ask(temperature=0.0))[0] == f"Pay {CARD}!"
    guarded.use(mesh={"answer": {"card": "mask"}})
    text, result = await guarded.ask(temperature=0.0)
    assert (text, result.cached) == ("Pay [card]!", True)
    guarded.use(mesh={"answer": {"card": "refuse"}})
    text, result = await guarded.ask(temperature=0.0)
    assert (text, result.cached, result.finish_reason) == ("Pay ", True, FinishReason.CONTENT_FILTER)
    assert len(guarded.service.worker.received) == 1


async def test_log_probabilities_would_show_what_is_masked(guarded: Guarded) -> None:
    guarded.use(mesh={"answer": {"card": "mask"}})
    with pytest.raises(errors.BadRequest, match="logprobs can't be returned: your policy masks or refuses parts of answers"):
        await guarded.ask(top_logprobs=1)
    guarded.use(mesh={"answer": {"card": "report"}})
    await guarded.ask(top_logprobs=1)


async def test_a_key_adds_guardrails_for_its_requests_only(guarded: Guarded) -> None:
    guarded.use(**{f"key__{KEYED.key_id}": {"prompt": {"email": "mask"}}})
    await guarded.ask("to a@b.example")
    await guarded.ask("to a@b.example", KEYED)
    assert guarded.prompts == ["to a@b.example", "to [email]"]


async def test_texts_for_embeddings_are_masked(guarded: Guarded) -> None:
    guarded.use(mesh={"prompt": {"card": "mask", "email": "refuse"}})
    worker = EmbeddingWorker()
    guarded.service.add_worker(31, worker, "embedder")
    context.start()
    request = EmbeddingRequest(model=ModelName("embedder"), inputs=(f"card {CARD}", (1, 2)))
    async with guarded.pulled.embed(OWNER, request, seconds=10) as running:
        assert [number async for number, _ in running] != []
    assert worker.received[0].inputs == ("card [card]", (1, 2))
    with pytest.raises(errors.ContentFiltered, match=r"^input\[1\] contains what your policy refuses: email$"):
        async with guarded.pulled.embed(OWNER, EmbeddingRequest(model=ModelName("embedder"), inputs=("fine", "a@b.example")), seconds=10):
            pass


async def test_masks_are_reported_once_a_minute_for_each_key_and_kind(guarded: Guarded) -> None:
    guarded.use(mesh={"prompt": {"card": "mask", "email": "mask"}})
    for _ in range(7):
        await guarded.ask(f"{CARD}, {CARD}")
    await guarded.ask("a@b.example", KEYED)
    assert guarded.acts.found == []
    guarded.reporting.flush()
    ids = [str(row.id) for row in guarded.service.store.rows.values()]
    assert guarded.acts.found == [
        ("guard.mask", "card", {"matches": "14", "requests": "7", "examples": ", ".join(ids[:5])}),
        ("guard.mask", "email", {"matches": "1", "requests": "1", "examples": ids[7]}),
    ]
    guarded.reporting.flush()
    assert len(guarded.acts.found) == 2
    rendered = guarded.service.metrics.render()
    assert 'ai_platform_guard_matches_total{action="mask",kind="card",place="prompt"} 14.0' in rendered
    assert CARD not in rendered


async def test_an_answer_that_no_policy_guards_is_passed_on_as_it_is(guarded: Guarded) -> None:
    guarded.use(mesh={"prompt": {"card": "mask"}})
    guarded.says("Pay ", CARD)
    assert (await guarded.ask())[0] == f"Pay {CARD}"
    assert guarded.counts == []
