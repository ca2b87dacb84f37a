"""What the worker and the process that tries grammars out say to each other: a grammar there, a verdict back, each behind its length."""

import socket
import struct
from enum import StrEnum

import msgspec

#: SECURITY.md, T6: what one grammar may take, compiled and led through some characters.
CPU_SECONDS = 2
MEMORY_BYTES = 512 * 1024 * 1024
#: A busy machine may need this long for CPU_SECONDS; a fork that has not ended by then waits for something that never comes.
WALL_SECONDS = 10.0
#: The longest grammar is 32 KiB, a verdict far shorter. Both ends are ours, the limit only catches mistakes early.
MOST_BYTES = 1024 * 1024

LENGTH = struct.Struct(">I")


class Judgement(StrEnum):
    #: In answer to nothing, as the first message: ready.
    FITS = "fits"
    REFUSED = "refused"
    #: No token of the model can be the first of an answer.
    NO_BEGINNING = "no_beginning"
    #: Over the time or the memory, or llama.cpp crashed on it.
    TOO_COSTLY = "too_costly"
    #: Did not end, without using its time.
    HUNG = "hung"
    #: As the first message: the file has no vocabulary that llama.cpp can load.
    NO_VOCABULARY = "no_vocabulary"


class GrammarVerdict(msgspec.Struct, frozen=True, array_like=True):
    judgement: Judgement
    #: llama.cpp's, of REFUSED.
    reason: str = ""


decoder = msgspec.msgpack.Decoder(GrammarVerdict)


def framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def send(connection: socket.socket, verdict: GrammarVerdict) -> None:
    connection.sendall(framed(msgspec.msgpack.encode(verdict)))


def receive(connection: socket.socket) -> bytes | None:
    """The next grammar; None when the other end is closed."""
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
