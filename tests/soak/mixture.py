"""A mixture of requests: every form that a stack accepts, invalid ones, and clients that disconnect early.

``form_of`` returns the form of a request by its number, the same in every run. ``ask`` sends it and records the outcome.
"""

import asyncio
import enum
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from bench import http_load
from bench.http_load import Answer, Client

#: The model that costs nothing, and the real one.
ECHO, REAL = "echo", "smollm2"
#: The length of answers of the real model; answers with a schema need more.
FEW_TOKENS, SCHEMA_TOKENS = 12, 64
#: A request that takes longer counts as lost.
ANSWER_SECONDS = 120.0
#: How long an impatient client waits for an answer that takes longer.
IMPATIENT_SECONDS = 0.03
LONG_ANSWER_WORDS = 80
#: Pieces read before a client disconnects in the middle.
MIDDLE = 4

GRAMMAR = 'root ::= ("yes" | "no") "."'

Body = dict[str, object]


class Entrance(enum.Enum):
    GATEWAY = enum.auto()
    #: Forwards to the gateway.
    WEB = enum.auto()
    #: The gateway, with an unknown key.
    STRANGER = enum.auto()


class Leaving(enum.Enum):
    AT_THE_END = enum.auto()
    IN_THE_MIDDLE = enum.auto()
    BEFORE_THE_ANSWER = enum.auto()


@dataclass(frozen=True, slots=True)
class Form:
    name: str
    #: Requests of this form in each lap.
    times: int
    #: Makes the body for a request's number: JSON, or invalid text.
    body: Callable[[int], Body | str]
    path: str = "/v1/chat/completions"
    status: int = 200
    leaving: Leaving = Leaving.AT_THE_END
    entrance: Entrance = Entrance.GATEWAY


def _words(number: int, count: int) -> str:
    return " ".join(f"word{number}x{position}" for position in range(count))


def _echo(number: int, *, words: int = 12, **more: object) -> Body:
    return {"model": ECHO, "messages": [{"role": "user", "content": _words(number, words)}], **more}


def _real(number: int, **more: object) -> Body:
    message = {"role": "user", "content": f"Tell me something about the number {number}."}
    return {"model": REAL, "messages": [message], "max_tokens": FEW_TOKENS, "seed": number, **more}


def _with_schema(number: int, words: tuple[str, ...], **more: object) -> Body:
    properties = {
        "word": {"enum": words},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
    }
    schema = {"type": "object", "properties": properties, "required": ["word", "sizes"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": schema}}
    return _real(number, response_format=form, max_tokens=SCHEMA_TOKENS, **more)


def _with_impossible_schema(number: int) -> Body:
    schema = {"type": "object", "not": {}}
    return _real(number, response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}})


def _with_usage(number: int) -> Body:
    return _echo(number, stream=True, stream_options={"include_usage": True})


_long_stream = partial(_echo, words=LONG_ANSWER_WORDS, stream=True)

FORMS = (
    Form("plain", 16, _echo),
    Form("streamed", 16, _with_usage),
    Form("left in the middle", 8, _long_stream, leaving=Leaving.IN_THE_MIDDLE),
    Form("left before the answer", 4, partial(_echo, words=LONG_ANSWER_WORDS), leaving=Leaving.BEFORE_THE_ANSWER),
    Form("a long prompt", 6, partial(_echo, words=2000, max_tokens=8)),
    Form("a stop", 6, lambda number: _echo(number, stop=[f"{number}x7", "never said"])),
    Form("/api/inference", 5, lambda number: {"model": ECHO, "prompt": _words(number, 8)}, path="/api/inference"),
    Form("/api/infer", 3, lambda number: {"model": ECHO, "payload": {"prompt": _words(number, 8), "stream": True}}, path="/api/infer"),
    Form("through web", 5, _echo, entrance=Entrance.WEB),
    Form("streamed through web", 3, _with_usage, entrance=Entrance.WEB),
    Form("left in the middle through web", 2, _long_stream, leaving=Leaving.IN_THE_MIDDLE, entrance=Entrance.WEB),
    Form("vectors", 2, lambda number: {"model": ECHO, "input": [_words(number, 8)]}, path="/v1/embeddings"),
    Form("a wrong parameter", 2, partial(_echo, temperature=5), status=400),
    Form("an unknown model", 2, lambda number: _echo(number) | {"model": f"model-{number}"}, status=404),
    Form("no JSON", 2, lambda number: f'{{"model": "echo", "messages": [{number}', status=400),
    Form("no prompt", 2, lambda number: _echo(number) | {"messages": []}, status=400),
    Form("a key of nobody", 2, _echo, status=401, entrance=Entrance.STRANGER),
    Form("real", 2, _real),
    Form("real, streamed", 2, partial(_real, stream=True, logprobs=True, top_logprobs=2)),
    Form("real, left in the middle", 2, partial(_real, max_tokens=200, stream=True), leaving=Leaving.IN_THE_MIDDLE),
    Form("real, left before the answer", 1, partial(_real, max_tokens=200), leaving=Leaving.BEFORE_THE_ANSWER),
    Form("real, two answers", 1, partial(_real, n=2)),
    Form("real, a stop", 1, lambda number: _real(number, stop=["e", str(number)])),
    Form("real, any object", 1, partial(_real, response_format={"type": "json_object"})),
    Form("real, a schema", 1, lambda number: _with_schema(number, ("ship", "sea"))),
    Form("real, a new schema", 1, lambda number: _with_schema(number, (f"ship{number}", f"sea{number}"), stream=True)),
    Form("real, a schema that cannot be", 1, _with_impossible_schema, status=400),
    Form("real, a grammar", 1, partial(_real, grammar=GRAMMAR)),
    Form("real, too long a prompt", 1, lambda number: _real(number) | {"messages": _echo(number, words=3000)["messages"]}, status=400),
    Form("real, vectors", 1, lambda number: {"model": REAL, "input": [_words(number, 4)]}, path="/v1/embeddings"),
)
_LAP = tuple(form for form in FORMS for _ in range(form.times))
LAP = len(_LAP)


def form_of(number: int) -> Form:
    """Return the form of a request. Each lap contains every form as often as its ``times``, in the lap's own order. Pure."""
    lap, place = divmod(number, LAP)
    return random.Random(lap).sample(_LAP, LAP)[place]


class Tally:
    """Counts the requests of each form, and collects unexpected outcomes."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.wrong: list[str] = []


async def ask(entrances: Mapping[Entrance, tuple[Client, str]], number: int, tally: Tally) -> None:
    """Send a request; each entrance is a client and its key."""
    form = form_of(number)
    (client, key), body = entrances[form.entrance], form.body(number)
    request = http_load.post(form.path, body if isinstance(body, str) else json.dumps(body), f"authorization: Bearer {key}")
    seconds = IMPATIENT_SECONDS if form.leaving is Leaving.BEFORE_THE_ANSWER else ANSWER_SECONDS
    pieces, wrong = 0, None

    def arrived() -> None:
        nonlocal pieces
        pieces += 1
        if form.leaving is Leaving.IN_THE_MIDDLE and pieces == MIDDLE:
            limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(seconds) as limit:
            wrong = find_wrong(form, *await client.ask(request.encode(), arrived))
    except TimeoutError:
        if form.leaving is Leaving.AT_THE_END or (form.leaving is Leaving.IN_THE_MIDDLE and pieces < MIDDLE):
            wrong = f"nothing for {seconds:g} s"
    tally.asked[form.name] += 1
    if wrong is not None:
        tally.wrong.append(f"request {number}, {form.name}: {wrong}")


def find_wrong(form: Form, answer: Answer, response: bytes | bytearray) -> str | None:
    """Return what is wrong with a response that was read to its end. Pure."""
    if answer.status != form.status:
        return f"{answer.status} {bytes(response[:500])!r}"
    if b'data: {"error"' in response or not answer.whole:
        return f"it ended with {bytes(response[-300:])!r}"
    head, _, body = response.partition(b"\r\n\r\n")
    try:
        if b"text/event-stream" not in head:
            msgspec.json.decode(body[body.find(b"{") : body.rfind(b"}") + 1])
    except msgspec.DecodeError as error:
        return f"the answer is no JSON: {error}"
    return None
