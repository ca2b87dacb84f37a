"""Commands talk to the running supervisor with one JSON line each way, over a Unix socket in the stack's home."""

import asyncio
from pathlib import Path

import msgspec

_ANSWER_SECONDS = 5.0
#: The status of ten programs takes 3 KB.
MAX_LINE_BYTES = 64 * 1024


class StatusRequest(msgspec.Struct, tag="status", frozen=True):
    """Ask for the status of all programs."""


class Restart(msgspec.Struct, tag="restart", frozen=True):
    name: str


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Stop everything, then the supervisor. It answers immediately, and the socket disappears when everything has stopped."""


Order = StatusRequest | Restart | Stop


class ProgramStatus(msgspec.Struct, frozen=True):
    name: str
    #: starting, running, waiting (for its next start), stopping, stopped or down (and not started again).
    state: str
    pid: int | None
    #: Unix time of the last change of state.
    since: float
    crashes: int
    why: str


class ControlAnswer(msgspec.Struct, frozen=True):
    ok: bool
    error: str = ""
    pid: int = 0
    fingerprint: str = ""
    programs: tuple[ProgramStatus, ...] = ()

    def program(self, name: str) -> ProgramStatus | None:
        return next((program for program in self.programs if program.name == name), None)


decode_order = msgspec.json.Decoder(Order).decode
_decode_answer = msgspec.json.Decoder(ControlAnswer).decode


async def send(socket: Path, order: Order) -> ControlAnswer | None:
    """Return None if no supervisor answers within 5 s."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket, limit=MAX_LINE_BYTES)
            try:
                writer.write(msgspec.json.encode(order) + b"\n")
                return _decode_answer(await reader.readline())
            finally:
                writer.close()
    except (OSError, msgspec.DecodeError):
        return None
