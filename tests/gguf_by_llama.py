"""llama.cpp's verdict on GGUF files, from a separate process, because a malformed file may crash it.

``python -m tests.gguf_by_llama read|load`` reads paths from stdin, one per line, and prints yes or no for each: `read` opens only the
header, `load` the whole model, with a context to decode in.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import llama_cpp.llama_cpp as native
from llama_cpp._ggml import libggml

from services.inference.engine import devices

ROOT = Path(__file__).parent.parent

How = Literal["read", "load"]


class _InitParameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


libggml.gguf_init_from_file.restype = ctypes.c_void_p
libggml.gguf_init_from_file.argtypes = (ctypes.c_char_p, _InitParameters)
libggml.gguf_free.argtypes = (ctypes.c_void_p,)
libggml.ggml_blck_size.restype = ctypes.c_int64
libggml.ggml_type_size.restype = ctypes.c_size_t


def opinions(how: How, paths: Iterable[Path]) -> list[bool]:
    """Return whether llama.cpp accepts each file; an AssertionError names the file that crashed it."""
    asked = list(paths)
    process = subprocess.run(
        [sys.executable, "-m", "tests.gguf_by_llama", how],
        input="".join(f"{path}\n" for path in asked),
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        # On an abort, llama.cpp would start gdb, if installed, and print its findings among the answers.
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    answers = process.stdout.split()
    assert process.returncode == 0, f"{asked[len(answers)]} ended llama.cpp ({process.returncode}): {process.stderr[-500:]}"
    return [answer == "yes" for answer in answers]


def block_sizes() -> dict[int, tuple[int, int]]:
    """Return the elements and bytes of a block by ggml's type number, without the types that were removed from ggml."""
    sizes = {number: (libggml.ggml_blck_size(number), libggml.ggml_type_size(number)) for number in range(native.GGML_TYPE_COUNT)}
    return {number: size for number, size in sizes.items() if size[1]}


def main(how: How) -> None:
    quiet = native.llama_log_callback(lambda _level, _text, _user: None)
    native.llama_log_set(quiet, ctypes.c_void_p(0))
    native.llama_backend_init()
    devices.load_backends()
    takes = {"read": _reads, "load": _loads}[how]
    for line in sys.stdin:
        print("yes" if takes(line.strip().encode()) else "no", flush=True)


def _reads(path: bytes) -> bool:
    header = libggml.gguf_init_from_file(path, _InitParameters(no_alloc=True, context=None))
    libggml.gguf_free(header)
    return header is not None


def _loads(path: bytes) -> bool:
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = native.llama_model_load_from_file(path, parameters)
    if not model:
        return False
    asked = native.llama_context_default_params()
    asked.n_ctx = asked.n_batch = asked.n_ubatch = 32
    asked.n_threads = asked.n_threads_batch = 1
    context = native.llama_init_from_model(model, asked)
    decoded = bool(context) and _decodes(model, context)
    if context:
        native.llama_free(context)
    native.llama_model_free(model)
    return decoded


def _decodes(model: native.llama_model_p, context: native.llama_context_p) -> bool:
    """Decode a short prompt and the most likely next token."""
    vocabulary, tokens, prompt = native.llama_model_get_vocab(model), (native.llama_token * 32)(), b"Hello, world\n"
    count = native.llama_tokenize(vocabulary, prompt, len(prompt), tokens, len(tokens), True, True)
    if count <= 0 or native.llama_decode(context, native.llama_batch_get_one(tokens, count)):
        return False
    sampler, piece = native.llama_sampler_init_greedy(), ctypes.create_string_buffer(64)
    token = native.llama_sampler_sample(sampler, context, -1)
    native.llama_sampler_free(sampler)
    return bool(native.llama_token_to_piece(vocabulary, token, piece, len(piece), 0, True) >= 0)


if __name__ == "__main__":
    main("load" if sys.argv[1] == "load" else "read")
