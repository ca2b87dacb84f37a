"""The engine's process: ``python -m services.inference.engine.process FD``, started by `backends.supervisor` and by nobody else.

It reads commands from an inherited socket and writes reports to it. It ends when the socket does, and the kernel ends
it with its parent in any case, also in the middle of a long step: an engine without a worker only burns a GPU.

Before it opens the model's file it gives up what it does not need of the system (`confinement`), and before llama.cpp sees
the file its header is checked (`model_parts`).
"""

import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

import llama_cpp.llama_cpp as native
import msgspec

from services.inference import lifeline
from services.inference.engine import confinement, llama_model, loading, model_parts, wire
from services.inference.engine.embedding_loop import EmbeddingLoop
from services.inference.engine.gguf import NotAModel
from services.inference.engine.loop import Loop
from shared import errors

_RECEIVE_BYTES = 256 * 1024


class WorkerGone(Exception):
    """The worker closed its end of the socket."""


class Channel:
    """The process's end of the socket. Sending blocks: a worker that does not read stops its engine."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unframer = wire.Unframer()

    def send(self, report: wire.Report) -> None:
        self._connection.sendall(wire.pack(report))

    def commands(self, *, wait: bool) -> Iterator[wire.Command]:
        """What has arrived, or, with ``wait``, what arrives next. Raises WorkerGone."""
        received = b""
        while True:
            for body in self._unframer.feed(received):
                wait = False
                yield wire.command_decoder.decode(body)
            if not wait and not select.select([self._connection], [], [], 0)[0]:
                return
            received = self._connection.recv(_RECEIVE_BYTES)
            if not received:
                raise WorkerGone


def main() -> None:
    lifeline.die_with(int(sys.argv[2]))
    # Ctrl-C in a terminal reaches the whole group, systemd's SIGTERM the whole unit; but the worker drains first, and
    # needs its engine for that. Closing the socket is what ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        _serve(channel)
    except (WorkerGone, BrokenPipeError, ConnectionResetError):
        sys.exit(0)
    except errors.ModelCrashed as crash:
        print(f"engine: {crash.message}", file=sys.stderr)
        sys.exit(1)


def _serve(channel: Channel) -> None:
    load = next(channel.commands(wait=True))
    if not isinstance(load, wire.Load):
        raise errors.ProtocolViolation("the engine's first message must be Load")
    unconfined = _confine()
    try:
        model_parts.check(Path(load.path))
        with llama_model.opened(load, lambda progress: channel.send(wire.Loading(progress))) as model:
            channel.send(msgspec.structs.replace(model.describe(), unconfined=unconfined))
            _run(channel, Loop(model, slots=load.slots, mode=load.kv_mode), EmbeddingLoop(model.embedder))
    except (loading.LoadRefused, NotAModel) as refused:
        channel.send(wire.LoadFailed(str(refused)))


def _confine() -> str:
    """Why this process is not confined; empty when it is."""
    # The first question for a GPU starts its driver, which may have to run a program that makes its devices.
    has_gpu = bool(native.llama_supports_gpu_offload())
    try:
        confinement.confine(local_sockets=has_gpu)
    except confinement.NotConfined as error:
        return str(error)
    return ""


def _run(channel: Channel, loop: Loop, embeddings: EmbeddingLoop) -> None:
    began = time.perf_counter()
    while True:
        # Without work, sleep in the socket; with work, look into it between two steps.
        asleep = loop.idle and embeddings.idle
        for command in channel.commands(wait=asleep):
            if asleep:
                began, asleep = time.perf_counter(), False
            if (report := _handled(command, loop, embeddings)) is not None:
                channel.send(report)
        if (step := loop.step()) is not None:
            ended = time.perf_counter()
            # Whatever happens between two steps counts too: reading prompts' texts, and telling the worker.
            channel.send(msgspec.structs.replace(step, seconds=ended - began))
            began = ended
        for turned in embeddings.turn(step):
            channel.send(turned)
            # What a turn takes it says itself.
            began = time.perf_counter()


def _handled(command: wire.Command, loop: Loop, embeddings: EmbeddingLoop) -> wire.Accepted | wire.Refused | None:
    match command:
        case wire.Generate():
            return loop.handle(command)
        case wire.Embed():
            return embeddings.handle(command)
        case wire.Cancel():
            embeddings.cancel(command.id)
            return loop.handle(command)
        case wire.Load():
            raise errors.ProtocolViolation("an engine loads one model, once")
        case _:
            assert_never(command)


if __name__ == "__main__":
    main()
