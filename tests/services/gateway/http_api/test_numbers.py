"""Hostile values in every field that users can send: refused with the field's name, or allowed by the contract, and cheap."""

import asyncio
import json
import math
import operator
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from services.gateway.http_api import rpc_routes
from services.gateway.http_api.http_app import HttpApp
from shared import errors
from shared.api import auth, embedding, inference
from shared.rpc import Handler, RpcCall, bodies
from shared.types import Role, UserRole
from tests import loop_time, tiers
from tests.cases import case
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY

#: JSON of each number.
NUMBERS = {"2^40": str(2**40), "10^400": "1" + "0" * 400, "1e400": "1e400", "-1": "-1", "-2^63": str(-(2**63)), "NaN": "NaN"}
#: JSON of other values, for each field.
OTHERS = {"an empty text": '""', "an empty list": "[]", "an empty object": "{}", "1 MB": f'"{"x" * 2**20}"'}
#: What msgpack can hold of them, and what JSON can't.
PACKED = (2**40, 2**64 - 1, -1, -(2**63), math.nan, math.inf, 1e308)
#: Of the event loop's thread, for one request.
MAX_SECONDS = 0.05
#: Of all requests together: traces and metrics are kept, and texts of 1 MB leave holes in the heap.
MAX_GROWTH_BYTES = 32 * 1024 * 1024
#: To llama.cpp's server it means this, so that only the missing prompt is refused.
NO_LIMIT = ("/infill", ".n_predict", "-1")
_NUMBER = "@number@"

#: One of them matches each pattern.
_TEXTS = ("x", "mesh", "USD", "INV-2026-000001", f"sha256:{'0' * 64}", *(f"{kind}{'a' * 26}" for kind in ("file-", "whe_", "job_")))

Place = tuple[str, Any, inspect.Type]
#: The smallest JSON value of a type, without optional fields.
_EXAMPLES: dict[type, Callable[[Any], Any]] = {
    inspect.StructType: lambda info: (
        ({info.tag_field: info.tag} if info.tag_field else {})
        | {field.encode_name: example(field.type) for field in info.fields if field.required}
    ),
    inspect.UnionType: lambda info: example(info.types[0]),
    inspect.StrType: lambda info: next(text for text in _TEXTS if re.search(info.pattern or "", text)),
    inspect.BytesType: lambda _: b"",
    inspect.UUIDType: lambda _: "01890000-0000-7000-8000-000000000000",
    inspect.DateType: lambda _: "2026-01-01",
    inspect.DateTimeType: lambda _: "2026-01-01T00:00:00Z",
    inspect.LiteralType: lambda info: info.values[0],
    inspect.EnumType: lambda info: next(iter(info.cls)).value,
    inspect.IntType: lambda info: 1 if info.ge is None else info.ge,
    inspect.FloatType: lambda info: 1 if info.ge is None else info.ge,
    inspect.VarTupleType: lambda info: [example(info.item_type)] * (info.min_length or 0),
    inspect.BoolType: lambda _: False,
    inspect.NoneType: lambda _: None,
    inspect.DictType: lambda _: {},
}


def example(info: inspect.Type) -> Any:
    return _EXAMPLES[type(info)](info)


def places(info: inspect.Type, above: frozenset[type] = frozenset()) -> Iterator[Place]:
    """Return the path of each field within a type, an example that has ``_NUMBER`` in its place, and its type."""
    if not isinstance(info, inspect.UnionType | inspect.Metadata):
        yield "", _NUMBER, info
    if isinstance(info, inspect.UnionType):
        yield from chain.from_iterable(places(each, above) for each in info.types)
    elif isinstance(info, inspect.VarTupleType):
        yield from ((f"[0]{path}", [value], number) for path, value, number in places(info.item_type, above))
    elif isinstance(info, inspect.DictType):
        yield from ((path, {example(info.key_type): value}, number) for path, value, number in places(info.value_type, above))
    elif isinstance(info, inspect.StructType) and info.cls not in above:
        for field in info.fields:
            for path, value, number in places(field.type, above | {info.cls}):
                yield f".{field.encode_name}{path}", {**example(info), field.encode_name: value}, number


def allows(number: inspect.IntType | inspect.FloatType, value: float) -> bool:
    """Return whether the contract's type has the value."""
    bounds = ((number.ge, operator.ge), (number.gt, operator.gt), (number.le, operator.le), (number.lt, operator.lt))
    return all(holds(value, bound) for bound, holds in bounds if bound is not None)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def post(app: HttpApp, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Post as uvicorn does; return the status and the error, if it is one."""
    sent: list[Any] = []

    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        if message := next(messages, None):
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    found = json.loads(content) if sent[0]["status"] >= 400 else {"error": {}}
    # Some APIs have errors whose message is a text.
    return sent[0]["status"], {**found, "message": found["error"]} if isinstance(found["error"], str) else found["error"]


def _dotted(path: str) -> str:
    return path.replace("[", ".").replace("]", "")


def _is_on_the_way(named: str, path: str) -> bool:
    """Return whether one of two paths contains the other."""
    one, other = f"{_dotted(named)}.", f"{_dotted(path)}."
    return one.startswith(other) or other.startswith(one)


async def refuse(_request: Any, _call: RpcCall) -> Any:
    raise errors.NotFound("the handler was reached")


def allows_body(kind: type, body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


async def refuse_stream(_request: Any) -> AsyncIterator[Any]:
    raise errors.NotReachable("there is no such worker")
    yield


async def test_hostile_values_in_bodies_are_refused_by_name_or_allowed_and_cost_nothing() -> None:
    async with fakes.running_service() as service:
        service.rpc.answers["auth.validateApiKey"] = _administrator
        service.rpc.streams |= {
            method.name: refuse_stream
            for method in (embedding.embed, embedding.rank, inference.tokenize, inference.detokenize, inference.render_chat)
        }
        service.own |= {method.name: Handler(method, refuse) for method in rpc_routes.methods() if method.served_by is Role.GATEWAY}
        app = service.app()
        routes = [route for by_verb in app._routes.values() for route in by_verb.values() if route.body is not None]
        tried = [(route, place) for route in routes for place in places(inspect.type_info(route.body)) if place[0]]
        assert len({route.path for route, _ in tried}) > 30
        before = resident_bytes()
        with loop_time.measured() as callbacks:
            for (place, (route, (path, value, info))), (name, text) in product(enumerate(tried), (NUMBERS | OTHERS).items()):
                if name in NUMBERS and not isinstance(info, inspect.IntType | inspect.FloatType):
                    continue
                if name == "1 MB" and place % tiers.FRACTION and not tiers.is_nightly():
                    continue
                body = msgspec.json.encode(value).replace(msgspec.json.encode(_NUMBER), text.encode())
                with case((route.path, path, name)), loop_time.subject(f"{route.path} {path} {name}"):
                    # In a new task, whose callbacks then are those of one request.
                    status, error = await asyncio.create_task(post(app, route.path, body))
                    # The fakes would keep everything.
                    for kept in (*(each.received for each in service.rpc.workers.values()), service.published):
                        kept.clear()
                    service.store.rows.clear()
                    assert status < 500 or error["code"] in {"not_reachable", "unavailable"}, error  # without other services
                    if name == "NaN":
                        assert (status, error["message"][:26]) == (400, "the body is not valid JSON")
                    elif (route.path, path, name) == NO_LIMIT:
                        assert error["param"] == "prompt", error
                    elif error.get("code") == "too_large":
                        assert (status, name) == (413, "1 MB")
                    elif name in ("10^400", "1e400") or not allows_body(route.body, body):
                        assert (status, len(error["message"]) < 500) == (400, True), error
                        assert _is_on_the_way(error["param"], path[1:]), error
        assert callbacks.count > len(tried) * len(OTHERS)
        callbacks.ensure_below(MAX_SECONDS)
        assert resident_bytes() - before < MAX_GROWTH_BYTES


async def _administrator(_request: Any) -> auth.Principal:
    return msgspec.structs.replace(fakes.OWNER, role=UserRole.ADMIN, confirmed_at=time.time())


#: An empty text, list and object, and 1 MB.
_PACKED_OTHERS = ("", [], {}, "x" * 2**20)


def test_hostile_values_in_mesh_messages_are_refused_by_name_or_allowed() -> None:
    refused = 0
    for method in rpc_routes.methods():
        for path, value, info in places(inspect.type_info(method.request)):
            is_number = isinstance(info, inspect.IntType | inspect.FloatType)
            for hostile in (*(PACKED if is_number and path else ()), *(_PACKED_OTHERS if path else ())):
                packed = msgspec.msgpack.encode(value)
                body = packed.replace(msgspec.msgpack.encode(_NUMBER), msgspec.msgpack.encode(hostile))
                with case((method.name, path, str(hostile)[:40])):
                    if is_number and not isinstance(hostile, str | list | dict):
                        allowed = allows(info, hostile) and (isinstance(hostile, int) or isinstance(info, inspect.FloatType))
                        assert allowed == _is_decoded(method.request, body)
                    if _is_decoded(method.request, body):
                        continue
                    named = "|".join(re.escape(path[1:][: end.start()]) for end in re.finditer(r"(?=[.\[])|$", path[1:]))
                    with pytest.raises(errors.BadRequest, match=rf"^{re.escape(method.name)}: ({named})[^ ]* (must |is |has )"):
                        bodies.decode_request(method.request, body, method.name)
                    refused += 1
    assert refused > 1000


def _is_decoded(kind: type, body: bytes) -> bool:
    try:
        msgspec.msgpack.decode(body, type=kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ('"n": 1099511627776', "n", "n must be a whole number from 1 to 4"),
        ('"n": 0', "n", "n must be a whole number from 1 to 4"),
        ('"n": 1.0', "n", "n must be a whole number from 1 to 4"),
        ('"n": "1"', "n", "n must be a whole number from 1 to 4"),
        ('"max_tokens": "x"', "max_tokens", "max_tokens must be a whole number that is at least 1"),
        (f'"max_tokens": {2**63}', "max_tokens", "max_tokens must be a whole number from 1 to 9223372036854775807"),
        ('"temperature": 2.1', "temperature", "temperature must be a number from 0 to 2"),
        ('"top_p": 0', "top_p", "top_p must be a number that is above 0 and at most 1"),
        ('"logit_bias": {"1": 101}', "logit_bias", "logit_bias must be a number from -100 to 100 for each entry"),
        ('"logit_bias": {"a": 1}', "logit_bias", "logit_bias must have token ids as its keys"),
        (f'"seed": {10**30}', "seed", "seed must be a number of at most 64 bits"),
        ('"seed": 1e400', "seed", "seed must be a number of at most 64 bits"),
        (f'"metadata": {{"a": [1, {2**64}]}}', "metadata.a.1", "metadata.a.1 must be a number of at most 64 bits"),
        (f'"seed": {10**4000}, "x": "{"y" * 65_000}"', None, "each number in the body must be a number of at most 64 bits"),
        ('"seed": 1' + "0" * 5000, None, "each number in the body must be a number of at most 64 bits"),
    ],
)
async def test_one_clear_sentence_names_the_field(body: str, field: str | None, message: str) -> None:
    async with fakes.running_service() as service:
        content = f'{{"messages": [{{"role": "user", "content": "hi"}}], {body}}}'
        status, error = await post(service.app(), "/v1/chat/completions", content.encode())
    assert (status, error["message"], error["param"], error["code"]) == (400, message, field, "bad_request")


@pytest.mark.parametrize("body", ['"seed": 1099511627776', '"max_tokens": 9223372036854775807', '"n": 4', '"temperature": 0'])
async def test_a_value_that_the_contract_allows_is_answered(body: str) -> None:
    async with fakes.running_service() as service:
        content = f'{{"messages": [{{"role": "user", "content": "hi"}}], {body}}}'
        assert (await post(service.app(), "/v1/chat/completions", content.encode()))[0] == 200
