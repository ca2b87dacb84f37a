"""The engine's process: ``python -m services.inference.engine.engine_process FD PARENT``, started only by `engine_supervisor`.

It reads commands from an inherited socket and writes reports to it. It ends when the socket closes, and the kernel kills it with its
parent, even during a long step.

Before it opens the model's file, it drops the privileges that it doesn't need (`confinement`); before llama.cpp sees the file, it
checks the header (`gguf_header`).
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
from services.inference.engine import confinement, engine_messages, gguf_header, llama_model, model_loading
from services.inference.engine.embedding_loop import EmbeddingLoop
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.gguf_header import NotAModel
from services.inference.engine.tokenize_queue import TokenizeQueue
from shared import errors

_RECEIVE_BYTES = 256 * 1024
#: How long tokenizing may hold the GIL while the loop waits, which releases it dozens of times in a step.
SWITCH_SECONDS = 0.0002


class WorkerGone(Exception):
    """The worker closed its end of the socket."""


class Channel:
    """The process's end of the socket. Sending blocks, so a worker that doesn't read stops its engine."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unframer = engine_messages.Unframer()

    def send(self, report: engine_messages.Report) -> None:
        self._connection.sendall(engine_messages.pack(report))

    def load(self) -> engine_messages.Command:
        """Return the first command; later ones stay buffered. Raises WorkerGone."""
        while True:
            for command in self._receive():
                return command

    def commands(self, *, wait_for: TokenizeQueue | None) -> list[engine_messages.Command]:
        """Return the commands that have arrived. With ``wait_for``, block until one arrives or the queue has results.
        Raises WorkerGone."""
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
    # Ctrl-C reaches the whole process group, systemd's SIGTERM the whole unit; but the worker needs its engine to drain. It ends
    # this process by closing the socket.
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
        raise errors.ProtocolViolation("the engine's first message must be LoadCommand")
    unconfined = _confine()
    try:
        model_loading.check(gguf_header.check_parts(Path(load.path)), load)
        with llama_model.opened(load, lambda progress: channel.send(engine_messages.Loading(progress))) as model:
            channel.send(msgspec.structs.replace(model.describe(), unconfined=unconfined))
            loop = EngineLoop(model, slots=load.slots, mode=load.kv_mode, cache_bytes=load.prompt_cache_bytes)
            run(channel, loop, EmbeddingLoop(model.embedder))
    except (model_loading.LoadRefused, NotAModel) as refused:
        channel.send(engine_messages.LoadFailed(str(refused)))


def _confine() -> str:
    """Return why this process can't be confined; empty if it is."""
    # Asking for a GPU starts its driver, which may need to run a program first.
    has_gpu = bool(native.llama_supports_gpu_offload())
    try:
        confinement.confine(local_sockets=has_gpu)
    except confinement.NotConfined as error:
        return str(error)
    return ""


def run(channel: Channel, loop: EngineLoop, embeddings: EmbeddingLoop) -> None:
    """Run the loop in a thread and tokenize in this one. Raises WorkerGone in the end."""
    with TokenizeQueue() as texts, ThreadPoolExecutor(1, "loop") as threads:
        ended = threads.submit(_run_loop, channel, loop, embeddings, texts)
        ended.add_done_callback(lambda _: texts.close())
        try:
            texts.run()
        finally:
            texts.close()
        ended.result()


def _run_loop(channel: Channel, loop: EngineLoop, embeddings: EmbeddingLoop, texts: TokenizeQueue) -> None:
    began = time.perf_counter()
    while True:
        # Without work, block on the socket; with work, poll it between two steps.
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
            # Includes the time between two steps, for starting sequences and sending reports.
            channel.send(msgspec.structs.replace(step, seconds=ended - began))
            began = ended
        for turned in embeddings.turn(step):
            channel.send(turned)
            began = time.perf_counter()


def _handled(
    command: engine_messages.Command, loop: EngineLoop, embeddings: EmbeddingLoop, texts: TokenizeQueue
) -> engine_messages.GenerationRefused | None:
    match command:
        case engine_messages.StartGeneration() | engine_messages.EmbedTexts() | engine_messages.ConvertTokens():
            try:
                _queue_text(command, loop, embeddings, texts)
            except (errors.BadRequest, errors.Overloaded, errors.Unavailable) as error:
                return engine_messages.GenerationRefused(command.id, error.to_problem())
        case engine_messages.CancelGeneration():
            texts.cancel(command.id)
            embeddings.cancel(command.id)
            loop.cancel(command.id)
        case engine_messages.ShowTokens():
            loop.show(command.spellings)
        case engine_messages.LoadCommand():
            raise errors.ProtocolViolation("an engine loads one model, once")
        case _:
            assert_never(command)
    return None


def _queue_text(command: engine_messages.TextCommand, loop: EngineLoop, embeddings: EmbeddingLoop, texts: TokenizeQueue) -> None:
    if isinstance(command, engine_messages.StartGeneration):
        texts.submit(command.id, loop.measure(command), partial(loop.tokenize, command), partial(loop.begin, command))
    elif isinstance(command, engine_messages.ConvertTokens):
        converted = partial(engine_messages.ConversionResult, command.id)
        texts.submit(command.id, len(engine_messages.pack(command)), partial(loop.convert, command), converted)
    else:
        texts.submit(command.id, embeddings.measure(command), partial(embeddings.tokenize, command), partial(embeddings.begin, command))


if __name__ == "__main__":
    main()
