"""The engine's process: ``python -m services.inference.engine.engine_process FD``, started by `backends.supervisor` and by nobody else.

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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import assert_never

import llama_cpp.llama_cpp as native
import msgspec

from services.inference import parent_death
from services.inference.engine import confinement, engine_messages, llama_model, model_loading
from services.inference.engine.embeddings.embedding_loop import EmbeddingLoop
from services.inference.engine.engine_loop import Loop
from services.inference.engine.gguf import model_parts
from services.inference.engine.gguf.gguf_header import NotAModel
from services.inference.engine.tokenize_queue import TokenizeQueue
from shared import errors

_RECEIVE_BYTES = 256 * 1024
#: How long tokenizing may keep Python from the loop, which gives Python up with each call of llama.cpp and does dozens in a step.
SWITCH_SECONDS = 0.0002


class WorkerGone(Exception):
    """The worker closed its end of the socket."""


class Channel:
    """The process's end of the socket. Sending blocks: a worker that does not read stops its engine."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unframer = engine_messages.Unframer()

    def send(self, report: engine_messages.Report) -> None:
        self._connection.sendall(engine_messages.pack(report))

    def load(self) -> engine_messages.Command:
        """The first command. Raises WorkerGone."""
        while True:
            for command in self._receive():
                # What follows stays in the unframer.
                return command

    def commands(self, *, wait_for: TokenizeQueue | None) -> list[engine_messages.Command]:
        """What has arrived. With ``wait_for``, blocks until something arrives, or until that has results. Raises WorkerGone."""
        readable: list[socket.socket | TokenizeQueue] = [self._connection] if wait_for is None else [self._connection, wait_for]
        received: list[engine_messages.Command] = []
        while self._connection in select.select(readable, [], [], 0 if wait_for is None or received else None)[0]:
            received += self._receive()
        return received

    def _receive(self) -> Iterator[engine_messages.Command]:
        data = self._connection.recv(_RECEIVE_BYTES)
        if not data:
            raise WorkerGone
        for body in self._unframer.feed(data):
            yield engine_messages.command_decoder.decode(body)


def main() -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    parent_death.die_with(int(sys.argv[2]))
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
    load = channel.load()
    if not isinstance(load, engine_messages.LoadCommand):
        raise errors.ProtocolViolation("the engine's first message must be Load")
    unconfined = _confine()
    try:
        model_parts.check(Path(load.path))
        with llama_model.opened(load, lambda progress: channel.send(engine_messages.Loading(progress))) as model:
            channel.send(msgspec.structs.replace(model.describe(), unconfined=unconfined))
            run(channel, Loop(model, slots=load.slots, mode=load.kv_mode), EmbeddingLoop(model.embedder))
    except (model_loading.LoadRefused, NotAModel) as refused:
        channel.send(engine_messages.LoadFailed(str(refused)))


def _confine() -> str:
    """Why this process is not confined; empty when it is."""
    # The first question for a GPU starts its driver, which may have to run a program that makes its devices.
    has_gpu = bool(native.llama_supports_gpu_offload())
    try:
        confinement.confine(local_sockets=has_gpu)
    except confinement.NotConfined as error:
        return str(error)
    return ""


def run(channel: Channel, loop: Loop, embeddings: EmbeddingLoop) -> None:
    """Serve until the worker is gone, which raises WorkerGone. The loop runs in a thread, and this one tokenizes."""
    with TokenizeQueue() as texts, ThreadPoolExecutor(1, "loop") as threads:
        ended = threads.submit(_run_loop, channel, loop, embeddings, texts)
        ended.add_done_callback(lambda _: texts.close())
        try:
            texts.run()
        finally:
            texts.close()
        ended.result()


def _run_loop(channel: Channel, loop: Loop, embeddings: EmbeddingLoop, texts: TokenizeQueue) -> None:
    began = time.perf_counter()
    while True:
        # Without work, sleep in the socket; with work, look into it between two steps.
        asleep = loop.idle and embeddings.idle
        commands = channel.commands(wait_for=texts if asleep else None)
        if asleep:
            began = time.perf_counter()
        for command in commands:
            if (refused := _handled(command, loop, embeddings, texts)) is not None:
                channel.send(refused)
        for report in texts.results():
            channel.send(report)
        if (step := loop.step()) is not None:
            ended = time.perf_counter()
            # Whatever happens between two steps counts too: beginning sequences, and telling the worker.
            channel.send(msgspec.structs.replace(step, seconds=ended - began))
            began = ended
        for turned in embeddings.turn(step):
            channel.send(turned)
            # What a turn takes it says itself.
            began = time.perf_counter()


def _handled(
    command: engine_messages.Command, loop: Loop, embeddings: EmbeddingLoop, texts: TokenizeQueue
) -> engine_messages.GenerationRefused | None:
    match command:
        case engine_messages.StartGeneration() | engine_messages.EmbedTexts():
            try:
                _queue_text(command, loop, embeddings, texts)
            except (errors.BadRequest, errors.Overloaded, errors.Unavailable) as error:
                return engine_messages.GenerationRefused(command.id, error.to_problem())
        case engine_messages.CancelGeneration():
            texts.cancel(command.id)
            embeddings.cancel(command.id)
            loop.cancel(command.id)
        case engine_messages.LoadCommand():
            raise errors.ProtocolViolation("an engine loads one model, once")
        case _:
            assert_never(command)
    return None


def _queue_text(
    command: engine_messages.StartGeneration | engine_messages.EmbedTexts, loop: Loop, embeddings: EmbeddingLoop, texts: TokenizeQueue
) -> None:
    if isinstance(command, engine_messages.StartGeneration):
        texts.submit(command.id, loop.measure(command), partial(loop.tokenize, command), partial(loop.begin, command))
    else:
        texts.submit(command.id, embeddings.measure(command), partial(embeddings.tokenize, command), partial(embeddings.begin, command))


if __name__ == "__main__":
    main()
