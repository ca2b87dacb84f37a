"""Ask running programs whether they are ready: with a server's own command, or at a service's /readyz."""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from shared import errors
from shared.api.gateway import Check
from shared.api.node import FIRST_MODEL, NodeHealth
from stack import processes
from stack.servers.program import CommandProbe, DatagramProbe, Probe, Program, SocketProbe

_PROBE_SECONDS = 2.0
#: A /readyz body is a few hundred bytes.
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_DATAGRAM_BYTES = 2048
#: What /healthz has if the service must be restarted.
_FAILED = b'"failed"'


@dataclass(frozen=True, slots=True)
class Health:
    ready: bool
    #: The reason why not, or the dependencies that are failing, in the service's own words.
    why: str
    #: It needs nothing but a model from its users, so waiting is useless.
    lacks_model: bool = False


class ProbeResult(Enum):
    NOTHING = "nothing"
    #: Something answers, but not like a server that is ready.
    REFUSAL = "refusal"
    READY = "ready"


async def run_probe(probe: Probe) -> ProbeResult:
    """Ask once, for at most 2 s; raises nothing."""
    with contextlib.suppress(OSError, errors.Unavailable):
        async with asyncio.timeout(_PROBE_SECONDS):
            match probe:
                case CommandProbe(command, silence_status):
                    status = (await processes.run("the probe", command, _PROBE_SECONDS)).status
                    return ProbeResult.NOTHING if status == silence_status else _judge(status == 0)
                case SocketProbe(place, question, expected):
                    answer = await _exchange(place, question, expected)
                    return _judge(answer == expected) if answer else ProbeResult.NOTHING
                case DatagramProbe(host, ports, question, expected):
                    answers = [await _exchange_datagram((host, port), question) for port in ports]
                    return _judge(all(each.startswith(expected) for each in answers))
    return ProbeResult.NOTHING


async def is_ready(probe: Probe) -> bool:
    """Try once, for at most 2 s."""
    return await run_probe(probe) is ProbeResult.READY


async def gets_answer(program: Program) -> bool:
    """Return whether a running program answers at all, even with a refusal, unless a service says that a part of it has died. True if it
    has no probe."""
    if program.url is not None:
        return await _answers_http(program.url)
    return program.probe is None or await run_probe(program.probe) is not ProbeResult.NOTHING


def _judge(is_expected: bool) -> ProbeResult:
    return ProbeResult.READY if is_expected else ProbeResult.REFUSAL


async def _answers_http(url: str) -> bool:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            status, body = await _get(url, "/healthz")
    except (OSError, ValueError):
        return False
    # A service with too many connections says 503, too.
    return status != 503 or _FAILED not in body


async def _exchange(place: Path | int, question: bytes, expected: bytes) -> bytes:
    opening = asyncio.open_unix_connection(place) if isinstance(place, Path) else asyncio.open_connection("127.0.0.1", place)
    reader, writer = await opening
    try:
        writer.write(question)
        answer = b""
        while len(answer) < len(expected) and expected.startswith(answer) and (part := await reader.read(len(expected) - len(answer))):
            answer += part
        return answer
    finally:
        writer.close()


async def _exchange_datagram(place: tuple[str, int], question: bytes) -> bytes:
    with socket.socket(type=socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        # On a connected socket, a port without a listener refuses immediately, and nothing else can answer.
        line.connect(place)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(line, question)
        return await loop.sock_recv(line, _MAX_DATAGRAM_BYTES)


async def health_of(url: str) -> Health:
    """Return a service's own report at this address. Takes at most 2 s and raises nothing."""
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            status, body = await _get(url, "/readyz")
    except TimeoutError:
        return Health(False, "it does not answer")
    except (OSError, asyncio.IncompleteReadError, ValueError):
        return Health(False, "nothing listens on its port yet")
    missing = _missing(body)
    why = "; ".join(f"{check.name}: {check.detail}" if check.detail else check.name for check in missing)
    return Health(status == 200, why or ("" if status == 200 else "not ready"), {check.name for check in missing} == {FIRST_MODEL})


async def _get(url: str, path: str) -> tuple[int, bytes]:
    place = urlsplit(url)
    context = None
    if place.scheme == "https":
        context = ssl.create_default_context()
        # This is our own process on this machine, and its certificate need not contain the name that we use.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    answer = bytearray()
    # A service with too many connections answers and closes before it has read the request. The reset that follows may discard the
    # answer, but it proves that the service is running.
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        reader, writer = await asyncio.open_connection(place.hostname, place.port, ssl=context)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n".encode())
            while len(answer) < _MAX_ANSWER_BYTES and (part := await reader.read(_MAX_ANSWER_BYTES)):
                answer += part
        finally:
            writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0, body


def _missing(body: bytes) -> list[Check]:
    try:
        found = msgspec.json.decode(body, type=NodeHealth)
    except msgspec.DecodeError:
        return []
    return [check for check in found.checks if not check.ok and check.needed]
