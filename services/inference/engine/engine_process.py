"""The engine's process: ``python -m services.inference.engine.engine_process FD PARENT``, started only by `engine_supervisor`.

It reads commands from an inherited socket and writes reports to it. It ends when the socket closes, and the kernel kills it with its
parent, even during a long step.

Before it opens the model's file, it drops the privileges that it doesn't need (`confinement`); before llama.cpp sees the file, it
checks the header (`gguf_header`).
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import assert_never

import llama_cpp.llama_cpp as native
import msgspec

from services.inference.engine import engine_messages, file_stamps, llama_model, model_loading
from services.inference.engine.embedding_loop import EmbeddingLoop
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.tokenize_queue import TextReport, TokenizeQueue
from services.inference.images.prompt_images import DecodedImage
from shared import confinement, errors, landlock, model_folder
from shared.gguf import gguf_header
from shared.gguf.gguf_header import NotAModel

_RECEIVE_BYTES = 256 * 1024
#: Reads between two steps: 4 MiB of images take a few milliseconds.
_MAX_READS = 16
#: The images that wait for their encoder.
MAX_IMAGE_BYTES = 256 * 1024 * 1024
#: Answers get most of the processor while images are encoded.
_NICENESS = 5
#: How often an engine that only encodes images shows that it lives.
_ALIVE_SECONDS = 10.0
#: How long a step of batches waits for a text that is being read: most take a millisecond.
_TEXT_SECONDS = 0.005
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

    def commands(self, *, wait_for: Sequence[TokenizeQueue], seconds: float | None) -> list[engine_messages.Command]:
        """Return commands that have arrived. Block so long, or without end, until one arrives or a queue has results. Raises WorkerGone."""
        readable: list[socket.socket | TokenizeQueue] = [self._connection, *wait_for]
        received: list[engine_messages.Command] = []
        for _ in range(_MAX_READS):
            if self._connection not in select.select(readable, [], [], 0 if received else seconds)[0]:
                break
            received += self._receive()
            seconds = 0
        return received

    def _receive(self) -> Iterator[engine_messages.Command]:
        data = self._connection.recv(_RECEIVE_BYTES)
        if not data:
            raise WorkerGone
        for body in self._unframer.feed(data):
            yield engine_messages.command_decoder.decode(body)


def main() -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    confinement.die_with(int(sys.argv[2]))
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
    # Before the backends are loaded, which starts threads of a GPU's driver.
    open_files = landlock.restrict(_files(load))
    with model_loading.native_log():
        has_gpu = bool(native.llama_supports_gpu_offload())
    unconfined = "; ".join(filter(None, (open_files, confinement.confine(local_sockets=has_gpu))))
    try:
        model_loading.check(gguf_header.check_parts(Path(load.path)), load)
        with llama_model.opened(load, lambda progress: channel.send(engine_messages.Loading(progress))) as model:
            if changed := file_stamps.find_changed(load.stamps, _files(load)):
                raise model_loading.LoadRefused(f"{changed} has changed since it was checked")
            channel.send(msgspec.structs.replace(model.describe(), unconfined=unconfined))
            loop = EngineLoop(model, slots=load.slots, cache_bytes=load.prompt_cache_bytes)
            run(channel, loop, EmbeddingLoop(model.embedder))
    except (model_loading.LoadRefused, NotAModel) as refused:
        channel.send(engine_messages.LoadFailed(str(refused)))


def _files(load: engine_messages.LoadCommand) -> list[Path]:
    named = [load.path, *(adapter.path for adapter in load.adapters), *filter(None, [load.projector])]
    return [part for file in named for part in model_folder.parts(Path(file))]


def run(channel: Channel, loop: EngineLoop, embeddings: EmbeddingLoop) -> None:
    """Run the loop in a thread, encode images in another and tokenize in this one. Raises WorkerGone in the end."""
    with TokenizeQueue() as texts, TokenizeQueue(MAX_IMAGE_BYTES) as images, ThreadPoolExecutor(2, "loop") as threads:
        queues = CommandQueues(loop, embeddings, texts, images)
        ended = [threads.submit(_run_loop, channel, queues), threads.submit(_run_images, images)]
        for one in ended:
            one.add_done_callback(lambda _: queues.close())
        try:
            texts.run()
        finally:
            queues.close()
        for one in ended:
            one.result()


def _run_images(images: TokenizeQueue) -> None:
    with suppress(OSError):
        # Also applies to the threads that llama.cpp starts for this one.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
    images.run()


def _run_loop(channel: Channel, queues: "CommandQueues") -> None:
    began = time.perf_counter()
    loop, embeddings = queues.loop, queues.embeddings
    while True:
        # Without work, block on the socket; with work, poll it between two steps.
        asleep = loop.idle and embeddings.idle
        wait = None if not queues.images.is_busy else _ALIVE_SECONDS
        commands = channel.commands(wait_for=(queues.texts, queues.images), seconds=wait if asleep else 0)
        if asleep:
            began = time.perf_counter()
            if queues.images.is_busy:
                channel.send(engine_messages.EncodingImages())
        for command in commands:
            if (refused := queues.handle(command)) is not None:
                channel.send(refused)
        if loop.makes_way and queues.texts.is_busy:
            # A live prompt would otherwise wait for one more step.
            select.select([queues.texts], [], [], _TEXT_SECONDS)
        for report in queues.results():
            channel.send(report)
        # Encoding slows what is computed beside it. An image that is encoded during the next step is queued already.
        is_usual = not queues.images.is_busy
        if (step := loop.step(is_usual=is_usual)) is not None:
            ended = time.perf_counter()
            # Includes the time between two steps, for starting sequences and sending reports.
            channel.send(msgspec.structs.replace(step, seconds=ended - began))
            began = ended
        for turned in embeddings.turn(step, is_usual=is_usual):
            channel.send(turned)
            began = time.perf_counter()


class CommandQueues:
    """Passes commands on to the loops, or to the threads that read their texts and images first."""

    def __init__(self, loop: EngineLoop, embeddings: EmbeddingLoop, texts: TokenizeQueue, images: TokenizeQueue) -> None:
        self.loop = loop
        self.embeddings = embeddings
        self.texts = texts
        self.images = images
        #: The images of commands that have not come yet.
        self._received: dict[int, list[DecodedImage]] = {}

    def close(self) -> None:
        self.texts.close()
        self.images.close()

    def results(self) -> Iterator[TextReport]:
        yield from self.texts.results()
        yield from self.images.results()

    def handle(self, command: engine_messages.Command) -> engine_messages.GenerationRefused | None:
        match command:
            case engine_messages.StartGeneration() | engine_messages.EmbedTexts() | engine_messages.ConvertTokens():
                try:
                    self._queue_text(command)
                except (errors.BadRequest, errors.Overloaded, errors.Unavailable) as error:
                    return engine_messages.GenerationRefused(command.id, error.to_problem())
            case engine_messages.AddImage():
                self._received.setdefault(command.id, []).append(command.image)
            case engine_messages.CancelGeneration():
                self._received.pop(command.id, None)
                self.texts.cancel(command.id)
                self.images.cancel(command.id)
                self.embeddings.cancel(command.id)
                self.loop.cancel(command.id, command.answer)
            case engine_messages.ShowTokens():
                self.loop.show(command.spellings)
            case engine_messages.LoadCommand():
                raise errors.ProtocolViolation("an engine loads one model, once")
            case _:
                assert_never(command)
        return None

    def _queue_text(self, command: engine_messages.TextCommand) -> None:
        loop, embeddings = self.loop, self.embeddings
        if isinstance(command, engine_messages.StartGeneration):
            images = self._received.pop(command.id, None)
            size = loop.measure(command)
            if images is None:
                self.texts.submit(command.id, size, partial(loop.tokenize, command), partial(loop.begin, command))
                return
            read = partial(loop.read_images, command, images, partial(self.images.is_current, command.id))
            self.images.submit(command.id, sum(len(image.rgb) for image in images), read, partial(loop.begin, command))
        elif isinstance(command, engine_messages.ConvertTokens):
            converted = partial(engine_messages.ConversionResult, command.id)
            self.texts.submit(command.id, len(engine_messages.pack(command)), partial(loop.convert, command), converted)
        else:
            measured = embeddings.measure(command)
            self.texts.submit(command.id, measured, partial(embeddings.tokenize, command), partial(embeddings.begin, command))


if __name__ == "__main__":
    main()
