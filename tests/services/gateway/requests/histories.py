"""Random histories of requests through the whole pipeline, over fakes and in virtual time, and what must be true of each.

    python -m tests.services.gateway.requests.histories 20000 >before     # and again after a change: equal lines are equal histories
    python -m tests.services.gateway.requests.histories 1 17              # all of history 17
    python -m tests.services.gateway.requests.histories 400 >tests/services/gateway/requests/histories.txt

What a history gives is data without ids and dates: what each caller got, the rows, where workers began, and what the limits settled.
"""

import asyncio
import hashlib
import math
import random
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from typing import Any

import msgspec

from services.gateway.billing.compute_pace import ComputePaces
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import ExtendedHold, InsufficientCredits
from services.gateway.facts import model_names, model_routes, upstream_prices
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.facts.reader import AnswerHead, Reader
from services.gateway.facts.request_record import RequestRow
from services.gateway.facts.tally import Tally
from services.gateway.idempotency.idempotency_keys import KeyUse, OrphanedKeyUse
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from services.gateway.limits.quotas import Quotas
from services.gateway.requests import hold, request_admission
from services.gateway.requests.repeated_request import RepeatedRequest
from services.gateway.requests.request_validation import ModerationRequest
from services.gateway.requests.runs import Runs
from services.gateway.requests.workers import Workers
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from shared import context, errors
from shared.api.embedding import Embed, Embedded, EmbeddingRequest, RankingRequest, Vectors
from shared.api.gateway import InferenceRequest, Rest
from shared.api.generation import ChatMessage, GenerationEnd, ToolCall, ToolCallPart, Usage
from shared.api.inference import (
    Chunk,
    Converted,
    ConvertedPart,
    Moderate,
    Moderated,
    ModerationNotice,
    ModerationVerdict,
    ProcessPrompt,
    Tokenize,
)
from shared.api.ledger import MICRO, ModelPrice
from shared.config_documents import PolicyDocument, RouteDocument, TargetDocument, TargetTask, UpstreamPriceDocument
from shared.types import FinishReason, MicroCredits, ModelName, RequestId, RequestStatus
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeKeys, FakeWorker, RunningService, node_id
from tests.shared.timing.virtual_time import VirtualLoop, pass_time

#: Short answers take several steps.
STEP, MIN_STEP = 8, 4
CONTEXT, PROMPT_TOKENS, KEY_SECONDS = 60, 7, 30.0
MODELS = tuple(map(ModelName, ("smollm2", "second", "third")))
GUARD = ModelName("guard")
TARGETS = tuple(
    TargetDocument(name=f"to-{name}", model=name, order=order) if order else TargetDocument(name=f"to-{name}", model=name, share=100)
    for order, name in enumerate(MODELS)
)
ROUTES = {
    number: model_routes.compile_route("route", 1, RouteDocument(targets=TARGETS[:number], compare_cost_with=MODELS[1]))
    for number in (1, 2, 3)
}
GUARDS = model_routes.compile_route(GUARD, 1, RouteDocument(targets=(TargetDocument(name="g", model=GUARD, task=TargetTask.MODERATION),)))
UPSTREAM = upstream_prices.compiled(UpstreamPriceDocument(input=3, output=5, cached_input=1, request="0.000001"))
FAILURES = (
    errors.LinkLost, errors.ModelCrashed, errors.Draining, errors.Unavailable, errors.NotReachable, errors.Overloaded,
    errors.ProtocolViolation, errors.BadRequest, errors.UnknownModel, errors.DeadlineExceeded,
)  # fmt: skip
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


class Kind(Enum):
    PROMPT, EMBEDDING, RANKING, MODERATION, CONVERSION = range(5)


class Calls(Enum):
    """How an answer ends with a tool call."""

    NONE, WHOLE, IN_PARTS, OUT_OF_ORDER = range(4)


class Guard(Enum):
    """What a policy looks for in answers; the last three by a moderation model, which flags ``w1``."""

    NONE, MASK, REFUSE, REPORTS, HOLDS, CHECKS_PROMPT = range(6)


@dataclass
class OwnConnection:
    """This gateway's connection to NATS, over which it reaches all workers."""

    is_lost: asyncio.Event = field(default_factory=asyncio.Event)
    back_at: float = -math.inf

    def lose(self) -> None:
        self.is_lost.set()
        self.back_at = math.inf

    def regain(self) -> None:
        self.is_lost = asyncio.Event()
        self.back_at = asyncio.get_running_loop().time()

    async def next_of(self, items: AsyncIterator[Any]) -> Any:
        """Return the next item; None after the last. Raises TransportLost."""
        waits = [asyncio.ensure_future(anext(items, None)), asyncio.ensure_future(self.is_lost.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not waits[0].done():
                raise errors.TransportLost("the connection to the NATS server was lost")
            return waits[0].result()
        finally:
            for each in waits:
                each.cancel()
            await asyncio.wait(waits)


class Vanished(errors.LinkLost):
    """The worker's process is gone, too."""

    code = errors.LinkLost.code


@dataclass
class Script:
    """What the workers of one history do, whichever is asked: the true answer, and after how many of its items each attempt fails."""

    items: int
    #: None stalls.
    falls: deque[tuple[int, errors.AimeshError | None]]
    answers: int = 1
    thoughts: int = 0
    has_ids: bool = True
    #: Items at a time.
    group: int = 1
    pace: float = 0.0
    #: It sends a notice first.
    loads: bool = False
    calls: Calls = Calls.NONE
    #: The item that is an e-mail address.
    address_at: int | None = None
    #: By how much its end has other counts than it sent.
    claims_too_many: int = 0
    #: Of the moderation model, for each check.
    check_falls: deque[errors.AimeshError] = field(default_factory=deque)

    @property
    def texts(self) -> list[str]:
        return [" ada@example.com" if number == self.address_at else f" w{number}" for number in range(self.items)]

    @property
    def call_from(self) -> int:
        """Return the item from which on they are the arguments of a call."""
        return self.items if self.calls is Calls.NONE else max(self.thoughts, self.items - 3)

    async def steps(self, begun: int, items: int) -> AsyncIterator[tuple[int, int]]:
        """Yield from and to which item the next message goes; fail in between."""
        fall, how = self.falls.popleft() if self.falls else (items + 1, None)
        at = begun
        while at < items:
            ends = [end for end in (self.thoughts, self.call_from) if end > at]
            to = min(items, at + self.group, *ends, max(fall, at))
            if to == at:
                await pass_time(100 if how is None else 0)
                raise how or errors.LinkLost("gone at last")
            await pass_time(self.pace)
            yield at, to
            at = to
        if fall <= at and how is not None:
            raise how

    async def prompt(self, prompt: ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
        delivered, most = len(prompt.delivered), prompt.model_config.max_tokens
        items = self.items if most is None else min(self.items, most)
        reason, texts = STOP if items == self.items else LENGTH, self.texts
        held = texts[delivered - 1] if self.has_ids and self.thoughts < delivered <= self.call_from else ""
        if self.loads:
            yield Chunk("", (), waiting="loading")
        async with aclosing(self.steps(delivered, items)) as steps:
            async for at, to in steps:
                ids, finish = tuple(range(at + 1, to + 1)) if self.has_ids else (), reason if to == items else None
                text = "".join(texts[at:to])
                is_call, is_thought = at >= self.call_from, at < self.thoughts
                if self.has_ids and not is_thought:  # the text is a token behind, as with half a character
                    ends = finish is not None or to == self.call_from
                    last = texts[to - 1]
                    text, held = ("" if is_call else held + text.removesuffix("" if ends else last)), "" if ends or is_call else last
                for answer in range(self.answers):
                    chunk = Chunk("" if is_thought or is_call else text, ids, answer=answer, finish=finish)
                    yield msgspec.structs.replace(
                        chunk, reasoning=text if is_thought else "", **self._calls(at, to, finish) if is_call else {}
                    )
        thoughts = max(0, min(self.thoughts, items) - delivered)
        claimed = max(-1, (items - delivered) * self.answers + self.claims_too_many)
        usage = Usage(PROMPT_TOKENS, claimed, 3, thoughts * self.answers)
        yield GenerationEnd(reason, usage, (reason,) * self.answers if self.answers > 1 else ())

    def _calls(self, at: int, to: int, finish: FinishReason | None) -> dict[str, Any]:
        arguments = f'"{at}-{to}"'
        if self.calls is Calls.WHOLE:
            return {} if finish is None else {"tool_calls": (ToolCall("id", "look", arguments),)}
        is_first = at == self.call_from
        index = 0 if self.calls is Calls.IN_PARTS else 2
        return {"call_parts": (ToolCallPart(index, arguments, "id" if is_first else "", "look" if is_first else ""),)}

    async def vectors(self, texts: int) -> AsyncIterator[Vectors | Embedded]:
        if self.loads:
            yield Vectors(waiting="loading")
        async with aclosing(self.steps(0, texts)) as steps:
            async for at, to in steps:
                yield Vectors(tuple(struct.pack("<f", number) for number in range(at, to)))
        yield Embedded(1, PROMPT_TOKENS + self.claims_too_many)

    async def verdicts(self, texts: Sequence[str], *, is_check: bool) -> AsyncIterator[ModerationNotice | Moderated]:
        yield ModerationNotice("loading")
        if is_check:
            await pass_time(self.pace)
            if self.check_falls:
                raise self.check_falls.popleft()
        else:
            async with aclosing(self.steps(0, len(texts))) as steps:
                async for _ in steps:
                    yield ModerationNotice("half")
        found = tuple(ModerationVerdict(flagged=True, categories=("violence",)) if "w1 " in text else _HARMLESS for text in texts)
        yield Moderated(found, PROMPT_TOKENS + self.claims_too_many)

    async def parts(self) -> AsyncIterator[ConvertedPart | Converted]:
        async with aclosing(self.steps(0, self.items)) as steps:
            async for at, to in steps:
                yield ConvertedPart(4 * at, b"1234" * (to - at))
        yield Converted(CONTEXT)


_HARMLESS = ModerationVerdict(flagged=False)


@dataclass
class History:
    kind: Kind
    script: Script
    workers: int
    #: Of a route; 1 is a model without a route.
    targets: int
    max_tokens: int | None
    #: The most that the ledger grants for each answer, and how long an extension takes.
    granted: int | None
    extension_seconds: float
    is_whole: bool
    seconds: float
    #: The caller takes so many chunks; then it leaves, or can take no more.
    stops_after: int | None
    fails_with: errors.AimeshError | None
    reading_seconds: float
    guard: Guard
    #: Callers with the same question, one after the other: under one key, or with the response cache.
    is_keyed: bool
    is_cached: bool
    callers: int
    gap: float
    #: The gateway stops then, and another one gets a repeat.
    stops_at: float | None
    #: The second model is a provider's.
    is_upstream: bool
    has_digests: bool
    #: Servers that count a prompt only at its end.
    counts_late: bool
    refuses: str
    #: When our own connection to NATS is lost, for how long, and how long workers take to announce themselves afterwards.
    away: tuple[float, float, float] | None

    @property
    def calls_are_wrong(self) -> bool:
        return self.script.calls is Calls.OUT_OF_ORDER


def draw(rng: random.Random) -> History:
    kind = rng.choices(tuple(Kind), (85, 6, 3, 3, 3))[0]
    items, is_whole, is_prompt = rng.randint(1, 24), rng.random() < 0.3, kind is Kind.PROMPT
    is_keyed, is_cached = rng.choice(((False, False), (False, False), (True, False), (False, True), (True, True)))
    is_keyed, is_cached = is_keyed and (is_prompt or kind is Kind.EMBEDDING), is_cached and is_prompt
    failures = (*FAILURES, Vanished) if rng.random() < 0.2 else FAILURES
    falls = [
        (rng.randint(0, items), None if rng.random() < 0.1 else rng.choice(failures)("gone")) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))
    ]
    guard = rng.choice((*[Guard.NONE] * 5, *Guard)) if is_prompt else Guard.NONE
    script = Script(
        items,
        deque(falls),
        rng.choice((1, 1, 1, 2)) if is_prompt else 1,
        rng.choice((0, 0, 2)) if is_prompt else 0,
        rng.random() < 0.75,
        rng.randint(1, 3),
        0.47 if is_cached else rng.choice((0.0, 0.0, 0.47)),
        loads=rng.random() < 0.2,
        calls=rng.choice((*[Calls.NONE] * 6, *Calls)) if is_prompt else Calls.NONE,
        address_at=rng.choice((None, 3, 9)),
        claims_too_many=rng.choice((*[0] * 8, -30, 4, 90)),
        check_falls=deque(rng.choice(FAILURES)("gone") for _ in range(rng.choice((0, 0, 0, 1, 3)))),
    )
    is_moderated = guard in {Guard.REPORTS, Guard.HOLDS, Guard.CHECKS_PROMPT}
    return History(
        kind,
        script,
        workers=rng.choice((1, 2, 4)),
        targets=rng.choice((1, 1, 2, 3)),
        max_tokens=rng.choice((None, None, 5, 30)),
        granted=rng.choice((None, 20, 12, 6)),
        extension_seconds=rng.choice((0.0, 0.0, 2.13)),
        is_whole=is_whole,
        seconds=rng.choice((8.05, 1000.0)),
        stops_after=rng.randint(1, 5) if rng.random() < 0.2 else None,
        fails_with=rng.choice((None, errors.Cancelled("slow"), errors.TooLarge("big"))),
        reading_seconds=rng.choice((0.0, 0.0, 0.31)),
        guard=guard,
        is_keyed=is_keyed,
        is_cached=is_cached,
        callers=rng.randint(2, 3) if is_keyed or (is_cached and not is_moderated) else 1,
        gap=rng.choice((0.23, 5.3)),
        stops_at=rng.choice((0.3, 1.3, 6.1)) if is_keyed and rng.random() < 0.2 else None,
        is_upstream=rng.random() < 0.4,
        has_digests=rng.random() < 0.9,
        counts_late=rng.random() < 0.1,
        refuses=rng.choice(("credits", "bad", "unknown", "ceiling")) if rng.random() < 0.06 else "",
        away=(rng.uniform(0, 3), rng.choice((0.4, 5.0, 25.0, 40.0)), rng.choice((0.06, 2.0))) if rng.random() < 0.15 else None,
    )


# --- the fakes ------------------------------------------------------------------------------------------------------------


class ScriptedWorker(FakeWorker):
    script: Script
    gone: Callable[[], object]
    begins: list[tuple[object, ...]]
    #: None if it is never lost.
    connection: OwnConnection | None

    async def run(self, prompt: Any) -> AsyncIterator[Any]:
        script, loop, connection = self.script, asyncio.get_running_loop(), self.connection
        ends_at = loop.time() + self.deadlines[-1]
        if connection is not None and connection.is_lost.is_set():
            raise errors.NotConnected("the connection to the NATS server is lost")
        match prompt:
            case ProcessPrompt():
                config = prompt.model_config
                self.begins.append((config.model, config.max_tokens, prompt.open_ended, prompt.reader_paced, len(prompt.delivered)))
                items: Any = script.prompt(prompt)
            case Embed():
                self.begins.append((prompt.model, len(prompt.inputs)))
                items = script.vectors(len(prompt.inputs))
            case Moderate():
                self.begins.append((prompt.model, len(prompt.texts)))
                items = script.verdicts(prompt.texts, is_check=prompt.texts != _MODERATED)
            case Tokenize():
                self.begins.append((prompt.model,))
                items = script.parts()
        async with aclosing(items):
            try:
                async with asyncio.timeout_at(ends_at):
                    item = await (anext(items, None) if connection is None else connection.next_of(items))
                while item is not None:
                    yield item  # a slow reader is not the worker's doing
                    async with asyncio.timeout_at(ends_at):
                        item = await (anext(items, None) if connection is None else connection.next_of(items))
            except Vanished as error:
                self.gone()
                raise errors.LinkLost("gone") from error
            except TimeoutError as error:
                raise errors.DeadlineExceeded("late") from error


class CountedQuotas(Quotas):
    """Notes what is settled."""

    settled: list[int]

    async def settle(self, usage: Any, *, tokens: int) -> None:
        self.settled.append(tokens)
        await super().settle(usage, tokens=tokens)


class FakeValues:
    """Valkey, as far as the response cache asks it."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def script(self, name: str, text: str) -> None: ...

    async def run(self, script: str, keys: Sequence[str], args: Any, *, seconds: float) -> Any:
        if script == "find_answers":
            return [self._kept.get(key) for key in keys]
        self._kept.update(zip(keys[3:], args[4:], strict=True))
        return 1


class SharedKeys(FakeKeys):
    """Keys of two gateways, of which the first stops."""

    def __init__(self, service: RunningService) -> None:
        super().__init__()
        self._service = service
        self._abandoned = dict[RequestId, int]()
        self._seeds = dict[RequestId, int]()

    async def claim(self, request: Any, fingerprint: bytes, node: Any, *, lease_seconds: float, dead: Any = None) -> KeyUse | None:
        held = self.held.get((request.owner, request.key))
        if held is None or held.request_id not in self._abandoned:
            self._seeds.setdefault(request.request_id, request.seed)
            return await super().claim(request, fingerprint, node, lease_seconds=lease_seconds, dead=dead)
        model = next((claim.model for claim in self._service.books.claims if claim.request_id == held.request_id), None)
        self.held[request.owner, request.key] = replace(held, request_id=request.request_id, gateway=node)
        seed = self._seeds[request.request_id] = self._seeds[held.request_id]
        return OrphanedKeyUse(seed, model, is_resumed=request.after > 0)

    async def abandon(self, request_id: RequestId) -> None:
        self._abandoned[request_id] = 1


@dataclass
class Outcome:
    #: For each caller: its chunks, and how it ended.
    got: list[tuple[list[tuple[object, ...]], object]]
    rows: list[RequestRow]
    #: What each worker was asked.
    begins: list[tuple[object, ...]]
    settled: list[int]
    #: Claims of slots, and requests in the table, that were left.
    left: tuple[int, int]
    #: A worker's failure was noted, or a retry paid from the budget.
    has_blamed: bool

    @property
    def lines(self) -> list[str]:
        """Return it without ids, dates and what measures real time."""
        rows = sorted(map(repr, map(_shown_row, self.rows)))
        return [*map(repr, self.got), *rows, repr(self.begins), repr(sorted(self.settled))]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:8]


def _shown_row(row: RequestRow) -> tuple[object, ...]:
    spending, guard = (
        [(one.route, one.target, one.micro) for one in row.spending],
        [(*map(str, (one.kind, one.action, one.place)), one.matches) for one in row.guard],
    )
    return (
        row.status.value, row.error_code, row.error_field, row.model_used, row.prompt_tokens, row.completion_tokens, row.cost_micro,
        row.saved_micro, row.reservation.value, row.cached, row.attempts, row.response_time_ms, row.first_token_ms, row.provider,
        spending, row.avoided_micro, row.variant_failed, row.route and (row.route.variant, row.route.target), guard,
    )  # fmt: skip


def _shown(number: int, piece: Any) -> tuple[object, ...]:
    if isinstance(piece, Vectors):
        return number, piece.waiting, [struct.unpack("<f", vector)[0] for vector in piece.vectors]
    calls = [(one.name, one.arguments) for one in (*piece.tool_calls, *piece.call_parts)]
    return number, piece.waiting, piece.answer, piece.text, piece.reasoning, piece.token_ids, calls, piece.finish and piece.finish.value


# --- one history ----------------------------------------------------------------------------------------------------------

_TEXTS, _MODERATED = ("one", "two", "three"), ("w1 w2", "fine")


class Teller:
    """Runs histories, one after the other, in one gateway."""

    def __init__(self, service: RunningService) -> None:
        self._service = service
        self._keys = map(str, count())
        self._quotas = CountedQuotas(service.counters, lambda: service.config.limits, service.metrics)
        service.admission = replace(service.admission, quotas=self._quotas)
        service.ledger._extensions._ask_all = self._extend

    async def tell(self, told: History) -> Outcome:
        service, loop = self._service, asyncio.get_running_loop()
        self._told, self._quotas.settled = told, []
        self._begins: list[tuple[object, ...]] = []
        self._connection = None if told.away is None else OwnConnection()
        await self._set_up(told)
        dispatch = Dispatch(service.directory, random.Random(1), clock=loop.time)
        search = replace(service.admission.search, dispatch=dispatch, directory=service.directory, clock=loop.time)
        back_at = (lambda: -math.inf) if self._connection is None else lambda: self._connection.back_at  # type: ignore[union-attr]
        self._workers = Workers(service.rpc, dispatch, clock=loop.time, draw=lambda: 0.5, back_at=back_at)  # type: ignore[arg-type]
        self._admission = replace(service.admission, search=search)
        keys, values, self._key = SharedKeys(service), FakeValues(), next(self._keys)
        got: list[tuple[list[tuple[object, ...]], object]] = []
        losing = None if told.away is None else asyncio.ensure_future(self._lose_connection(*told.away))
        async with Recorders(loop.time).running() as recorders:
            runs = self._gateway(recorders, keys, values, 1)
            tasks = []
            for number in range(told.callers):
                tasks.append(asyncio.ensure_future(self._call(runs, number)))
                await pass_time(told.gap)
            if told.stops_at is None:
                got += await asyncio.gather(*tasks)
                await pass_time(1)
            else:
                await pass_time(told.stops_at)
        if told.stops_at is not None:
            got += await asyncio.gather(*tasks)
            async with Recorders(loop.time).running() as recorders:
                have = max([number for pieces, _ in got for number, *_ in pieces], default=0)
                got.append(await self._call(self._gateway(recorders, keys, values, 2), told.callers, after=int(str(have))))
                await pass_time(1)
        if losing is not None:
            await losing
        rows = list(service.store.rows.values())
        has_blamed = bool(dispatch.worker_stats.outliers.records) or self._workers.budget._retries.total(loop.time()) > 0
        return Outcome(got, rows, self._begins, self._quotas.settled, (dispatch.in_flight, len(service.runs.running)), has_blamed)

    async def _lose_connection(self, after: float, seconds: float, quiet_seconds: float) -> None:
        connection, directory = self._connection, self._service.directory
        assert connection is not None
        await pass_time(after)
        connection.lose()
        directory.transport_lost("nats")
        await pass_time(seconds)
        connection.regain()
        directory.transport_back("nats")
        await pass_time(quiet_seconds)
        for entry in directory.entries():
            if entry.alive:
                directory.apply_announcement(entry.announcement, "nats")

    async def _set_up(self, told: History) -> None:
        service = self._service
        service.directory, service.rpc = fakes.FakeDirectory(), fakes.FakeRpc()
        for number in range(told.workers):
            made = fakes.announcement(number, *MODELS, context_tokens=CONTEXT)
            offers = [msgspec.structs.replace(offer, digest="d" * 64 if told.has_digests else "") for offer in made.models]
            if told.is_upstream:
                offers[1] = msgspec.structs.replace(offers[1], provider="acme")
            self._add(number, msgspec.structs.replace(made, models=tuple(offers)))
        self._add(50, fakes.announcement(50, GUARD, only_moderates=True))
        service.store.rows.clear()
        books = service.books
        books.most_tokens, books.claims = told.granted, []
        books.refuses = InsufficientCredits(0) if told.refuses == "credits" else None
        books.over_ceiling = frozenset({"to-smollm2"}) if told.refuses == "ceiling" else frozenset()
        books.prices = (
            Price(1, ModelPrice(None, MicroCredits(MICRO), MicroCredits(2 * MICRO), compute_second_micro=MicroCredits(3))),
            Price(2, ModelPrice(MODELS[1], MicroCredits(10 * MICRO), MicroCredits(20 * MICRO))),
        )
        await service.ledger.refresh_prices()
        service.ledger._paces = ComputePaces()
        names = model_names.ModelNames({}, None, routes={"route": ROUTES[told.targets], GUARD: GUARDS})
        prices = {MODELS[1]: UPSTREAM}
        service.config = ConfigSnapshot(names=names, limits=service.config.limits, policies=POLICIES[told.guard], upstream_prices=prices)

    def _add(self, number: int, made: Any) -> None:
        service = self._service
        worker = service.rpc.workers[node_id(number)] = ScriptedWorker(prompt_tokens=0 if self._told.counts_late else PROMPT_TOKENS)
        worker.script, worker.begins, worker.connection = self._told.script, self._begins, self._connection
        worker.gone = lambda: service.directory.mark_gone(node_id(number), "the link ended")
        service.directory.apply_announcement(made, "nats")

    def _gateway(self, recorders: Recorders, keys: SharedKeys, values: FakeValues, number: int) -> Runs:
        service, clock, responses = self._service, asyncio.get_running_loop().time, None
        if self._told.is_cached:
            bounds = CacheBounds(keep_seconds=60, most_bytes=2**20, most_seconds=self._told.seconds)
            responses = ResponseCache(values, recorders, service.metrics, bounds, secret="s" * 16, clock=clock)  # type: ignore[arg-type]
        idempotency = IdempotentRequests(
            keys, recorders, node_id(90 + number), items=fakes.new_items(), secret="s" * 16, most_seconds=KEY_SECONDS, clock=clock
        )
        service.runs = service.new_runs(self._admission, self._workers, responses, idempotency)
        return service.runs

    async def _extend(self, extensions: Sequence[Any]) -> list[ExtendedHold]:
        await pass_time(self._told.extension_seconds)
        return [ExtendedHold(min(one.max_tokens, self._told.granted or one.max_tokens)) for one in extensions]

    async def _call(self, runs: Runs, number: int, after: int = 0) -> tuple[list[tuple[object, ...]], object]:
        """Return what one caller gets; only the first one leaves early."""
        told, pieces = self._told, list[tuple[object, ...]]()
        try:
            context.start()
            async with asyncio.timeout(None if told.is_whole else told.seconds + 0.01) as deadline:
                return pieces, await self._ask(runs, pieces, told.stops_after if number == 0 else None, after)
        except TimeoutError:
            assert deadline.expired()
            return pieces, "late"
        except errors.AimeshError as error:
            return pieces, errors.code_of(error)
        except asyncio.CancelledError:
            return pieces, "left"

    async def _ask(self, runs: Runs, pieces: list[tuple[object, ...]], stops_after: int | None, after: int) -> object:
        told, reader = self._told, ScriptedReader(self._told, pieces, stops_after)
        model = MODELS[0] if told.targets == 1 else ModelName("route")
        if told.refuses == "unknown":
            model = ModelName("nothing")
        seconds, key = told.seconds, self._key if told.is_keyed else None
        match told.kind:
            case Kind.PROMPT:
                fields = {"temperature": 0.0} if told.is_cached else {}
                if told.refuses == "bad":
                    fields["top_p"] = 7.0
                request = InferenceRequest(prompt="hi", model=model, max_tokens=told.max_tokens, n=told.script.answers, **fields)
                repeat = RepeatedRequest(key=key, rest=Rest(after) if after else None)
                result = await runs.answer(OWNER, request, reader, seconds=seconds, repeat=repeat, streamed=not told.is_whole)
                return str((result.finish_reason, result.finish_reasons)), str(result.usage)
            case Kind.EMBEDDING:
                vectors = await runs.embed(OWNER, EmbeddingRequest(_TEXTS, model=model), reader, seconds=seconds, key=key)
                return str((None, ())), str(vectors.dimensions)
            case Kind.RANKING:
                vectors = await runs.rank(OWNER, RankingRequest("which", _TEXTS, model), reader, seconds=seconds)
                return str((None, ())), str(vectors.dimensions)
            case Kind.MODERATION:
                return await runs.moderate(OWNER, ModerationRequest(_MODERATED, GUARD), Reader(), seconds=seconds)
            case Kind.CONVERSION:
                tokenize = Tokenize(model, (ChatMessage("user", "hi"),))
                return (await runs.convert(OWNER, tokenize, Reader(), seconds=seconds, forbids_external=False))[0]


class ScriptedReader(Reader[AnswerHead, Any]):
    def __init__(self, told: History, pieces: list[tuple[object, ...]], stops_after: int | None) -> None:
        self._told, self._pieces, self._stops_after = told, pieces, stops_after

    async def take(self, number: int, piece: Any, at: Tally) -> bool:
        await pass_time(self._told.reading_seconds if number else 0)
        if number and self._stops_after is not None and len(self._pieces) >= self._stops_after:
            raise self._told.fails_with or asyncio.CancelledError
        self._pieces.append(_shown(number, piece))
        return True


def _policies() -> dict[Guard, Policies]:
    check = {"route": GUARD}
    guards: dict[Guard, dict[str, Any]] = {
        Guard.NONE: {},
        Guard.MASK: {"answer": {"email": "mask"}},
        Guard.REFUSE: {"answer": {"email": "refuse"}},
        Guard.REPORTS: {"moderation": {**check, "answer": "report"}},
        Guard.HOLDS: {"moderation": {**check, "answer": "refuse"}},
        Guard.CHECKS_PROMPT: {"moderation": {**check, "prompt": "refuse", "on_error": "allow"}, "answer": {"email": "mask"}},
    }
    documents = {guard: {"external": ["*"], **({"guard": rules} if rules else {})} for guard, rules in guards.items()}
    default = PolicyDocument(external=("*",))
    return {guard: Policies({"mesh": msgspec.convert(body, PolicyDocument), "default": default}) for guard, body in documents.items()}


POLICIES = _policies()


def check(told: History, outcome: Outcome) -> None:
    """Assert what is true of every history."""
    script, rows = told.script, [row for row in outcome.rows if row.model_used != GUARD or told.kind is Kind.MODERATION]
    assert outcome.left == (0, 0), "a slot or a request is left"
    is_moderated = told.guard in {Guard.REPORTS, Guard.HOLDS, Guard.CHECKS_PROMPT}
    assert told.is_keyed or is_moderated or len(rows) == told.callers, "each request has one row"
    assert len(outcome.settled) >= len(outcome.rows), "each row's limits are settled"
    most = min(told.granted or CONTEXT, CONTEXT) * script.answers
    for row in rows:
        assert row.cached or row.completion_tokens <= most, "no more is billed than was held"
        assert row.reservation.value == "settled" or not row.cost_micro, "what is released is free"
        assert not (row.status is RequestStatus.LIMITED and (row.attempts or row.cost_micro)), "a refused request costs nothing"
        assert row.status is not RequestStatus.SUCCESS or row.error_code is None
    if told.away is not None and not script.falls and not script.check_falls and not told.calls_are_wrong:
        _check_away(told, outcome, sum(told.away[1:]))
    if told.kind is not Kind.PROMPT or told.guard is not Guard.NONE or told.calls_are_wrong:
        return
    whole = "".join(script.texts[: script.call_from])
    for number, (pieces, end) in enumerate(outcome.got[: told.callers]):
        for answer in range(script.answers):
            mine = [piece for piece in pieces if piece[0] and piece[2] == answer]
            ids: list[int] = [token for piece in mine for token in piece[5]]  # type: ignore[attr-defined]
            text = "".join(f"{piece[4]}{piece[3]}" for piece in mine)
            assert ids == sorted(set(ids)), "no token is lost or doubled"
            assert whole.startswith(text), "no text is lost or doubled"
            if "stop" in str(end) and (number or told.stops_after is None):
                assert script.answers > 1 or text == whole, "a complete answer is whole"


def _check_away(told: History, outcome: Outcome, seconds: float) -> None:
    """``seconds``: how long nothing was known of the workers, of which none has failed."""
    if told.seconds < seconds + 10:
        return  # the last worker may have been late
    assert not outcome.has_blamed, "our own connection is nobody's failure"
    in_parts = told.kind in {Kind.EMBEDDING, Kind.RANKING}
    may_resume = not in_parts and told.script.answers == 1 and told.script.has_ids and told.has_digests
    # A key outlives its callers only for a while, and not a whole answer that is too large for them.
    key_ends = told.is_keyed and (seconds > 10 or (told.is_whole and told.fails_with is not None))
    if may_resume and seconds < QueueSettings().queue_seconds and not (told.refuses or told.stops_at or key_ends):
        wrong = [end for _, end in outcome.got[1 if told.stops_after else 0 :] if isinstance(end, str)]
        assert not wrong, "a request waits until our own connection is back"


def run(seeds: Sequence[int], each: Callable[[int, History, Outcome], object]) -> None:
    """Tell the histories with these seeds, in virtual time."""

    async def tell() -> None:
        async with fakes.running_service(free=10**9) as service:
            teller = Teller(service)
            for seed in seeds:
                try:
                    each(seed, draw(random.Random(seed)), await teller.tell(draw(random.Random(seed))))
                except BaseException as error:
                    error.add_note(f"history {seed}: {draw(random.Random(seed))}")
                    raise

    steps = request_admission.STEP_TOKENS, hold._MIN_STEP
    request_admission.STEP_TOKENS, hold._MIN_STEP = STEP, MIN_STEP
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(tell())
    finally:
        request_admission.STEP_TOKENS, hold._MIN_STEP = steps


def _print(seed: int, told: History, outcome: Outcome) -> None:
    if len(sys.argv) > 2:
        print(told, *outcome.lines, sep="\n")
    check(told, outcome)
    print(seed, outcome.digest)


if __name__ == "__main__":
    number, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    run(range(first, first + number), _print)
