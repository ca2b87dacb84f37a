"""Prints whether one variant of llama.cpp has AVX512_BF16, and digests of the logits that it computes from a model, or nothing if this
processor can't run it."""

import ctypes
import hashlib
import sys
from pathlib import Path

import llama_cpp

TEXT = "The river rose for three days. On the fourth, the miller counted 17 sacks, closed the gate and"
NEW_TOKENS = 24
_F16, _BF16 = 1, 30
#: Types of the cache: the default, and one with keys that AVX512_BF16 multiplies.
TYPES = ((_F16, _BF16), (_BF16, _F16))


def main(variant: str, model: str) -> None:
    score = ctypes.CDLL(variant).ggml_backend_score
    if not score():
        return
    registry = ctypes.CDLL(str(Path(variant).with_name("libggml.so")))
    registry.ggml_backend_load.argtypes, registry.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    assert registry.ggml_backend_load(variant.encode())
    print(b"AVX512_BF16 = 1" in llama_cpp.llama_print_system_info())
    for keys, values in TYPES:
        llama = llama_cpp.Llama(model, n_ctx=256, n_threads=1, type_k=keys, type_v=values, flash_attn=True, logits_all=True, verbose=False)
        tokens = llama.tokenize(TEXT.encode())
        llama.eval(tokens)
        for _ in range(NEW_TOKENS):
            llama.eval([int(llama.scores[llama.n_tokens - 1].argmax())])
        print(hashlib.sha256(llama.scores[: llama.n_tokens].tobytes()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
