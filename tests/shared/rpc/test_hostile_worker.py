"""Random frame sequences from a certified worker, more of them at night: whatever it sends, each call ends exactly once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared import errors
from shared.api import inference
from shared.api.generation import GenerationEnd, Usage
from shared.node.lifecycle import background
from shared.protocol import wire
from shared.protocol.wire import Accepted, Call, Cancel, Credit, End, Error, Frame, Goaway, Hello, Item, Piece, Ping, Pong, Reply
from shared.rpc import Dispatcher, bodies
from shared.rpc.calling import RpcReply
from shared.rpc.connection import RpcConnection
from shared.transports.link import Link
from shared.types import FinishReason, NodeId, Peer, Role
from tests import tiers
from tests.shared.rpc.test_floods import Service

SEQUENCES = tiers.volume(50_000)
#: After this many, the loop runs once, and with it the worker's own calls.
AT_ONCE = 250

CHUNK = bodies.encode(inference.Chunk("word", (1,)))
END = bodies.encode(GenerationEnd(FinishReason.STOP, Usage(1, 1)))
PROBLEM = errors.ModelCrashed("it broke").to_problem()
#: Valid bodies, ones that break the contract, text that is not UTF-8, and one as long as a frame may be.
BODIES = (CHUNK, CHUNK, END, b"", b"\xc1", b"\x92\xa4\xff\xfe\xfd\xfc\x90", bytes(wire.MAX_BODY_BYTES))
METHODS = ("auth.loginUser", "node.readHealth", "no.such", "", "x" * 1000)


class WorkersLink(Link):
    """A link to a worker that the test plays."""

    def __init__(self) -> None:
        peer = Peer(Role.WORKER, NodeId("UWORKER"))
        super().__init__(peer, transport="test", path="test", dialled=True, now=0.0)

    def _wake_writer(self) -> None:
        """The test never takes the writes."""

    def _forget(self, why: errors.AimeshError) -> None:
        pass


class Ends:
    """Counts how often a call ends, and fails if anything follows the end."""

    def __init__(self, *, streaming: bool) -> None:
        self.streaming = streaming
        self.ends = 0

    def received(self, message: Accepted | Item | Reply | End) -> None:
        assert self.ends == 0, f"{message} after the end"
        assert isinstance(message, (Accepted, Item, End) if self.streaming else (Accepted, Reply))
        self.ends += isinstance(message, (Reply, End))

    def failed(self, error: errors.AimeshError) -> None:
        assert isinstance(error, errors.AimeshError)
        self.ends += 1


@dataclass(frozen=True, slots=True)
class Dice:
    rng: random.Random
    #: The calls that the frames refer to.
    numbers: list[int]

    @property
    def number(self) -> int:
        return self.rng.choice(self.numbers)

    @property
    def body(self) -> bytes:
        return self.rng.choice(BODIES)

    @property
    def more(self) -> bool:
        return self.rng.random() < 0.2

    @property
    def credit(self) -> int:
        return self.rng.choice((1, -5, 1 << 62))


MAKERS: tuple[Callable[[Dice], Frame], ...] = (
    lambda dice: Item(dice.number, dice.body, dice.more),
    lambda dice: Item(dice.number, CHUNK),
    lambda dice: Accepted(dice.number, dice.body),
    lambda dice: Reply(dice.number, dice.body, dice.more),
    lambda dice: End(dice.number, dice.body, dice.more),
    lambda dice: Error(dice.number, PROBLEM),
    lambda dice: Piece(dice.number, dice.body, dice.more),
    lambda dice: Credit(dice.number, dice.credit, dice.credit, dice.credit),
    lambda dice: Cancel(dice.number),
    lambda dice: Call(dice.rng.choice((2, 4, 6, dice.number)), dice.rng.choice(METHODS), 60_000, dice.body, dice.more),
    lambda dice: Call(dice.rng.choice((2, 4)), "auth.loginUser", dice.rng.choice((0, -1, 1 << 62)), b""),
    lambda dice: dice.rng.choice((Ping(1), Pong(1, 9), Goaway("I leave"))),
    lambda dice: dice.rng.choice((Hello(1, Role.AUTH, NodeId("UX"), 0, "", b""), wire.Announce(dice.body))),
)


def frames_of(rng: random.Random, asked: list[int]) -> Callable[[], Frame]:
    """Make frames of a few kinds for a few calls, so that many sequences get far before they break the protocol."""
    strange = [2, 4, 0, -1, 7, 1 << 40]
    dice = Dice(rng, [*asked, *rng.sample(strange, rng.choice((0, 0, 0, 2)))])
    makers = rng.sample(MAKERS, rng.randint(1, 4))
    return lambda: rng.choice(makers)(dice)


def ask(connection: RpcConnection, rng: random.Random) -> tuple[int, Ends]:
    call_id, waiter = connection.next_id(), Ends(streaming=rng.random() < 0.7)
    connection.ask(Call(call_id, "inference.processPrompt", 60_000, b""), waiter, streaming=waiter.streaming)
    return call_id, waiter


def play(rng: random.Random, dispatcher: Dispatcher) -> str:
    """Run one link with one to three calls of ours, and up to three writes of the worker with up to four frames. Return the outcome."""
    link = WorkersLink()
    connection = RpcConnection(link, dispatcher)
    asked = dict(ask(connection, rng) for _ in range(rng.randint(1, 3)))
    frame = frames_of(rng, list(asked))
    for _ in range(rng.randint(1, 3)):
        if link.closed is None:
            link.receive([frame() for _ in range(rng.randint(1, 4))], 0)
        for call_id, waiter in asked.items():
            if rng.random() < 0.05 and waiter.ends == 0:
                connection.withdraw(call_id)
                waiter.ends = 1  # the caller has left: nothing more may arrive
            elif waiter.streaming:
                connection.took(call_id, rng.randrange(100))
    how = "went on" if link.closed is None else type(link.closed).__name__
    link.close(errors.LinkLost("the test is over"))
    assert [waiter.ends for waiter in asked.values()] == [1] * len(asked)
    assert connection.in_flight == 0
    return how


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Dispatcher, list[Exception]]]:
    """Yield a dispatcher, and the exceptions that its handlers raise."""
    bugs: list[Exception] = []
    async with background() as tasks:
        dispatcher = Dispatcher(tasks, lambda *observed: None, lambda method, bug: bugs.append(bug))
        dispatcher.add(Service())
        yield dispatcher, bugs


async def test_every_call_ends_exactly_once_whatever_the_worker_sends() -> None:
    outcomes: Counter[str] = Counter()
    async with serving() as (dispatcher, bugs):
        for seed in range(SEQUENCES):
            try:
                outcomes[play(random.Random(seed), dispatcher)] += 1
            except Exception as error:
                raise AssertionError(f"with seed {seed}") from error
            if seed % AT_ONCE == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not bugs
        assert dispatcher.running < 10, "what ran for a closed link is over"
    print(dict(outcomes))
    assert outcomes.keys() == {"went on", "ProtocolViolation"}
    assert min(outcomes.values()) > SEQUENCES / 10


async def test_a_stream_yields_valid_chunks_and_one_end_or_one_error() -> None:
    """The same, through the reader that the gateway's relay uses."""
    outcomes: Counter[str] = Counter()
    async with serving() as (dispatcher, bugs):
        for seed in range(tiers.volume(2000)):
            rng, link = random.Random(seed), WorkersLink()
            connection = RpcConnection(link, dispatcher)
            answer = RpcReply(inference.process_prompt, connection)
            answer.call_id = connection.next_id()
            connection.ask(Call(answer.call_id, "inference.processPrompt", 60_000, b""), answer, streaming=True)
            frame = frames_of(rng, [answer.call_id])
            for _ in range(rng.randint(1, 6)):
                if link.closed is None:
                    link.receive([frame()], 0)
            link.close(errors.LinkLost("the worker is gone"))
            try:
                async for chunk in answer:
                    assert isinstance(chunk, inference.Chunk)
                assert isinstance(answer.end, GenerationEnd)
                outcomes["whole"] += 1
            except errors.AimeshError as error:
                outcomes[errors.code_of(error)] += 1
        assert not bugs
    print(dict(outcomes))
    assert outcomes.keys() >= {"whole", "link_lost", "protocol_violation", "model_crashed"}
