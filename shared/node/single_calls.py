"""One unary call that did not come over a link: from a NATS client with an operator's key, or from a stock @hyperswarm/rpc client.

Bodies are msgpack or JSON, and the answer is what the question was.
"""

import time
from typing import Any

import msgspec

from shared import context, errors
from shared.api.method import Method
from shared.rpc import bodies
from shared.rpc.serving import Call, Dispatcher, Handler
from shared.types import Credential, Peer

DEADLINE_SECONDS = 10.0

_to_json = msgspec.json.Encoder().encode


async def answer(
    dispatcher: Dispatcher,
    handler: Handler,
    peer: Peer,
    body: bytes,
    *,
    is_json: bool,
    credential: str = "",
    traceparent: str = "",
) -> bytes:
    """Run the handler, which ``dispatcher.find`` has found for this peer; raises AimeshError alone."""
    context.start(traceparent)
    method = handler.method
    if not isinstance(method, Method):
        raise errors.BadRequest(f"{method.name} streams, and this way there is one answer alone", hint="call it over a link, or over HTTP")
    request = (
        _decode_json(method.request, body, method.name) if is_json else bodies.decode_request(method.request, body or b"\x80", method.name)
    )
    until = time.monotonic() + DEADLINE_SECONDS
    context.deadline.set(until)
    call = Call(peer, deadline=until, credential=Credential(credential) if credential else None, idempotency_key=None)
    return await dispatcher.answer(handler, request, call, _to_json if is_json else bodies.encode)


def _decode_json(kind: type[Any], body: bytes, method: str) -> Any:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.BadRequest(f"{method}: {error}", hint="docs/reference/rpc.md has the fields of every method") from error
