import tracemalloc
from pathlib import Path

import pytest

from shared.gguf import gguf_header
from tests import gguf_by_llama, gguf_files
from tests.gguf_files import LlamaShape, Weights

TINY = LlamaShape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=128, vocabulary=300, context=128)


@pytest.mark.parametrize("weights", ["q8_0", "f16"])
def test_a_made_model_is_loaded_and_decoded_by_llama(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_llama(path, TINY, weights=weights, seed=1)
    assert gguf_by_llama.opinions("load", [path]) == [True]


def test_a_made_model_has_the_shape_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_llama(path, TINY, weights="f16", seed=1)
    with path.open("rb") as file:
        header = gguf_header.read_header(file, path.stat().st_size)
    assert header.architecture == "llama"
    assert (header.block_count, header.embedding_length, header.context_length, header.vocabulary_size) == (2, 64, 128, 300)
    assert (header.head_counts, header.kv_head_counts, header.key_length) == ((4, 4), (2, 2), 16)
    in_two_bytes, in_four = 2 * 64 * 300 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128), 2 * 2 * 64 + 64
    assert header.tensor_bytes == 2 * in_two_bytes + 4 * in_four


def test_the_same_seed_makes_the_same_model(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        gguf_files.write_llama(path, TINY, weights="q8_0", seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_a_model_is_made_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    shape = LlamaShape(layers=4, embedding=1024, heads=8, kv_heads=8, feed_forward=4096, vocabulary=2000, context=128)
    tracemalloc.start()
    try:
        gguf_files.write_llama(path, shape, weights="q8_0", seed=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size // 4
