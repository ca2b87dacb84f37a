"""The process that tests grammars: ``python -m services.inference.structured_output.checker_process FD PARENT MODEL``, started only
by `grammar_checker`.

It loads only a model's vocabulary, then reads grammars from its socket and answers with verdicts. Each grammar is tested in a fork with
little time and memory, so that one on which llama.cpp loops, runs out of memory or crashes only ends the fork. The process ends when the
socket closes, and the kernel kills it with its parent.
"""

import ctypes
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

import llama_cpp.llama_cpp as native

from services.inference import parent_death
from services.inference.structured_output import checker_messages
from services.inference.structured_output.checker_messages import GrammarVerdict, Judgement

_ERROR_LEVEL = 4
#: Kept of llama.cpp's message, which repeats the grammar.
_REASON_BYTES = 4096
#: Characters to follow a grammar, twice. Some grammars compile fast and then double their state at every bracket.
_STEPS = 100
_OPENING = b"{[(<"


class _Exit(IntEnum):
    """A fork's exit codes."""

    FITS = 0
    REFUSED = 10
    NO_BEGINNING = 11


class CheckerVocabulary:
    """A model's tokens, as the grammar sampler sees them."""

    def __init__(self, model: native.llama_model_p) -> None:
        self.pointer = native.llama_model_get_vocab(model)
        #: Created once; the forks write to their own copies.
        self.everything = _candidates(range(native.llama_vocab_n_tokens(self.pointer)))
        #: ASCII character -> token: enough to follow a grammar, with thousands of times less work than all tokens.
        self.letters: dict[int, int] = {}
        piece = ctypes.create_string_buffer(2)
        for token in range(len(self.everything)):
            if native.llama_token_to_piece(self.pointer, token, piece, 2, 0, False) == 1 and 0x20 <= piece.raw[0] < 0x7F:
                self.letters.setdefault(piece.raw[0], token)


def _candidates(tokens: Sequence[int]) -> "ctypes.Array[native.llama_token_data]":
    made = (native.llama_token_data * len(tokens))()
    for candidate, token in zip(made, tokens, strict=True):
        candidate.id = token
    return made


def main() -> None:
    parent_death.die_with(int(sys.argv[2]))
    # The worker needs its children to drain. It ends this process by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    try:
        with opened(Path(sys.argv[3])) as vocabulary:
            if vocabulary is None:
                checker_messages.send(connection, GrammarVerdict(Judgement.NO_VOCABULARY))
                return
            checker_messages.send(connection, GrammarVerdict(Judgement.FITS))
            while (grammar := checker_messages.receive(connection)) is not None:
                checker_messages.send(connection, _judge(vocabulary, grammar, connection))
    except (BrokenPipeError, ConnectionResetError):
        return


def _judge(vocabulary: CheckerVocabulary, grammar: bytes, connection: socket.socket) -> GrammarVerdict:
    reading, writing = os.pipe()
    # If the pipe is full, a fork loses its message rather than wait for a reader.
    os.set_blocking(writing, False)
    fork = os.fork()
    if fork == 0:
        _try_out(vocabulary, grammar, writing)
    os.close(writing)
    message, is_over = _listen(reading, connection, time.monotonic() + checker_messages.WALL_SECONDS)
    os.close(reading)
    if not is_over:
        os.kill(fork, signal.SIGKILL)
    _, status = os.waitpid(fork, 0)
    if not is_over:
        return GrammarVerdict(Judgement.HUNG)
    match os.waitstatus_to_exitcode(status):
        case _Exit.FITS:
            return GrammarVerdict(Judgement.FITS)
        case _Exit.NO_BEGINNING:
            return GrammarVerdict(Judgement.NO_BEGINNING)
        case _Exit.REFUSED:
            return GrammarVerdict(Judgement.REFUSED, _reason(message))
        case _:
            return GrammarVerdict(Judgement.TOO_COSTLY)


def _listen(reading: int, connection: socket.socket, until: float) -> tuple[bytes, bool]:
    """Return the beginning of the fork's message, and whether the fork has ended, which closes its end of the pipe."""
    message = b""
    while ready := select.select([reading, connection.fileno()], [], [], max(0.0, until - time.monotonic()))[0]:
        if reading not in ready:
            # The worker sends nothing before it has the verdict, so it is gone.
            break
        received = os.read(reading, 64 * 1024)
        if not received:
            return message, True
        message = (message + received)[:_REASON_BYTES]
    return message, False


def _reason(message: bytes) -> str:
    """Return the first line of llama.cpp's message, without the function's name and the grammar."""
    line = message.decode("utf-8", "replace").partition("\n")[0]
    return (line.partition(": error parsing grammar: ")[2].partition(" at ")[0] or line)[:120]


# --- in the fork ------------------------------------------------------------------------------------------------------


def _try_out(vocabulary: CheckerVocabulary, grammar: bytes, error_pipe: int) -> NoReturn:
    code = 1
    try:
        parent_death.die_with(os.getppid())
        _limit()
        os.dup2(error_pipe, 2)
        code = _compile(vocabulary, grammar)
    finally:
        os._exit(code)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (checker_messages.CPU_SECONDS, checker_messages.CPU_SECONDS))
    try:
        own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        # Not Linux: only the time bounds the memory.
        return
    resource.setrlimit(resource.RLIMIT_AS, (own + checker_messages.MEMORY_BYTES, own + checker_messages.MEMORY_BYTES))


def _compile(vocabulary: CheckerVocabulary, grammar: bytes) -> int:
    sampler = native.llama_sampler_init_grammar(vocabulary.pointer, grammar, b"root")
    if not sampler:
        return _Exit.REFUSED
    _apply(sampler, vocabulary.everything)
    if all(candidate.logit != 0.0 for candidate in vocabulary.everything):
        return _Exit.NO_BEGINNING
    for is_opening in (True, False):
        native.llama_sampler_reset(sampler)
        _lead(sampler, vocabulary, is_opening=is_opening)
    return _Exit.FITS


def _lead(sampler: "native.llama_sampler_p", vocabulary: CheckerVocabulary, *, is_opening: bool) -> None:
    """Generate text by the grammar: with a bracket wherever possible, or with random characters."""
    candidates = _candidates(list(vocabulary.letters.values()))
    opening = {vocabulary.letters[letter] for letter in _OPENING if letter in vocabulary.letters} if is_opening else set()
    draw = 1
    for _ in range(_STEPS):
        for candidate in candidates:
            candidate.logit = 0.0
        _apply(sampler, candidates)
        allowed = [int(candidate.id) for candidate in candidates if candidate.logit == 0.0]
        if not allowed:
            return
        choices = [token for token in allowed if token in opening] or allowed
        # A simple generator, so that the same grammar always gets the same verdict.
        draw = (draw * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        native.llama_sampler_accept(sampler, choices[(draw >> 16) % len(choices)])


def _apply(sampler: "native.llama_sampler_p", candidates: "ctypes.Array[native.llama_token_data]") -> None:
    array = native.llama_token_data_array(candidates, len(candidates), -1, False)
    native.llama_sampler_apply(sampler, ctypes.byref(array))


# --- the process ------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[CheckerVocabulary | None]:
    """Load the vocabulary; None if llama.cpp can't load it."""
    callback = native.llama_log_callback(_pass_on_errors)
    native.llama_log_set(callback, ctypes.c_void_p(0))
    native.llama_backend_init()
    parameters = native.llama_model_default_params()
    parameters.vocab_only = True
    parameters.n_gpu_layers = 0
    model = native.llama_model_load_from_file(os.fsencode(path), parameters)
    try:
        yield CheckerVocabulary(model) if model else None
    finally:
        if model:
            native.llama_model_free(model)
        # The callback object must outlive every native call that may log.
        native.llama_log_set(native.llama_log_callback(0), ctypes.c_void_p(0))


def _pass_on_errors(level: int, text: bytes, _user: object) -> None:
    if level == _ERROR_LEVEL:
        os.write(2, text)


if __name__ == "__main__":
    main()
