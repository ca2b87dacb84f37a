"""Requests of stock protomux-rpc clients, which our own wire does not carry: each in a task, its answer or refusal sent back."""

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from shared.hyperswarm import frames
from shared.hyperswarm.connection import Pipe
from shared.hyperswarm.errors import RequestRefused

#: After the 32 bytes of the key: the connection's number, the length of the method.
_HEAD: Final = struct.Struct("<32sIH")
_VALUE, _REFUSAL = b"\0", b"\1"


@dataclass(frozen=True, slots=True)
class Request:
    #: The caller's public key, proven by the Noise handshake.
    key: bytes
    #: The same for all requests that come by one connection.
    connection_id: int
    method: str
    value: bytes


Answers = Callable[[Request], Awaitable[bytes]]


class Requests:
    """What is under way. ``answers`` returns the value, or raises RequestRefused; anything else ends the swarm."""

    def __init__(self, answers: Answers, tasks: asyncio.TaskGroup) -> None:
        self._answers = answers
        self._group = tasks
        self._under_way: set[asyncio.Task[None]] = set()

    def receive(self, pipe: Pipe, number: int, payload: bytes) -> None:
        key, connection_id, length = _HEAD.unpack_from(payload)
        method = payload[_HEAD.size : _HEAD.size + length].decode(errors="replace")
        request = Request(key, connection_id, method, payload[_HEAD.size + length :])
        task = self._group.create_task(self._answer(pipe, number, request))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def cancel(self) -> None:
        for task in self._under_way:
            task.cancel()

    async def _answer(self, pipe: Pipe, number: int, request: Request) -> None:
        try:
            said = _VALUE + await self._answers(request)
        except RequestRefused as refusal:
            said = _REFUSAL + json.dumps({"code": refusal.code, "message": refusal.message}).encode()
        pipe.send(frames.RESPONSE, number, said)
