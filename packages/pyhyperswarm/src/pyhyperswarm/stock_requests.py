"""Answers requests of stock protomux-rpc clients, each in its own task."""

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from pyhyperswarm import sidecar_frames
from pyhyperswarm.peer_connection import Pipe
from pyhyperswarm.swarm_errors import RequestRefused

_HEAD: Final = struct.Struct("<32s64sH")
#: The number with which the sidecar reports a closed connection.
GONE: Final = 0
_VALUE, _REFUSAL = b"\0", b"\1"


@dataclass(frozen=True, slots=True)
class Request:
    #: The caller's public key, proved by the Noise handshake.
    key: bytes
    #: The hash of that handshake, which identifies the connection.
    channel: bytes
    method: str
    value: bytes


Answers = Callable[[Request], Awaitable[bytes]]
OnGone = Callable[[bytes], None]


class StockRequests:
    """The running requests. ``answers`` returns the value or raises RequestRefused; anything else ends the swarm. It is canceled when the
    caller's connection is closed. ``on_gone`` is then called if any request was answered on that connection."""

    def __init__(self, answers: Answers, on_gone: OnGone, tasks: asyncio.TaskGroup) -> None:
        self._answers = answers
        self._on_gone = on_gone
        self._group = tasks
        #: Numbers repeat after a restart of the sidecar, so the sidecar is part of the key.
        self._under_way: dict[tuple[Pipe, int], asyncio.Task[None]] = {}

    def receive(self, pipe: Pipe, number: int, payload: bytes) -> None:
        if not payload:
            if (gone := self._under_way.get((pipe, number))) is not None:
                gone.cancel()
            return
        if number == GONE:
            self._on_gone(payload)
            return
        key, channel, length = _HEAD.unpack_from(payload)
        method = payload[_HEAD.size : _HEAD.size + length].decode(errors="replace")
        request = Request(key, channel, method, payload[_HEAD.size + length :])
        task = self._group.create_task(self._answer(pipe, number, request))
        self._under_way[pipe, number] = task
        task.add_done_callback(lambda done: self._under_way.pop((pipe, number), None))

    def cancel(self) -> None:
        for task in self._under_way.values():
            task.cancel()

    async def _answer(self, pipe: Pipe, number: int, request: Request) -> None:
        try:
            reply = _VALUE + await self._answers(request)
        except RequestRefused as refusal:
            reply = _REFUSAL + json.dumps({"code": refusal.code, "message": refusal.message}).encode()
        pipe.send(sidecar_frames.RESPONSE, number, reply)
