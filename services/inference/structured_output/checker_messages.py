"""The messages between the worker and the checker process: a grammar, then a verdict, each after its length."""

import socket
import struct
from enum import StrEnum

import msgspec

#: SECURITY.md, T6: limits for compiling a grammar and following it for some characters.
CPU_SECONDS = 2
MEMORY_BYTES = 512 * 1024 * 1024
#: A busy machine may need this long for CPU_SECONDS; a fork that is still running then hangs.
WALL_SECONDS = 10.0
#: The longest grammar has 32 KiB. Both ends are ours; the limit catches mistakes early.
MOST_BYTES = 1024 * 1024

LENGTH = struct.Struct(">I")


class Judgement(StrEnum):
    #: As the first message: ready.
    FITS = "fits"
    REFUSED = "refused"
    #: No token of the model can start an answer.
    NO_BEGINNING = "no_beginning"
    #: It exceeded the time or memory, or crashed llama.cpp.
    TOO_COSTLY = "too_costly"
    #: It didn't end, without using up its CPU time.
    HUNG = "hung"
    #: As the first message: llama.cpp can't load a vocabulary from the file.
    NO_VOCABULARY = "no_vocabulary"


class GrammarVerdict(msgspec.Struct, frozen=True, array_like=True):
    judgement: Judgement
    #: llama.cpp's reason for REFUSED.
    reason: str = ""


decoder = msgspec.msgpack.Decoder(GrammarVerdict)


def framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def send(connection: socket.socket, verdict: GrammarVerdict) -> None:
    connection.sendall(framed(msgspec.msgpack.encode(verdict)))


def receive(connection: socket.socket) -> bytes | None:
    """Return the next grammar; None if the other end is closed."""
    prefix = _exactly(connection, LENGTH.size)
    return None if prefix is None else _exactly(connection, LENGTH.unpack(prefix)[0])


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    received = bytearray()
    while len(received) < min(size, MOST_BYTES):
        part = connection.recv(size - len(received))
        if not part:
            return None
        received += part
    return bytes(received)
