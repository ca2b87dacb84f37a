"""The faster copy of the default model that setup writes."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.models import model_discovery, requantize
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader
from tests import gguf_files
from tests.gguf_files import LlamaShape

SMALL = LlamaShape(layers=2, embedding=64, heads=2, kv_heads=1, feed_forward=128, vocabulary=320, context=512)


def copied(source: Path, folder: Path) -> GgufHeader:
    """Make a copy in that folder, and check that it has the same shape and leaves nothing else."""
    target = folder / model_discovery.fast_copy(source).name
    requantize.requantize(source, target)
    copy = gguf_header.check_parts(target)
    assert copy == replace(gguf_header.check_parts(source), tensor_bytes=copy.tensor_bytes, matrix_types=frozenset({"q8_0"}))
    assert list(folder.iterdir()) == [target]
    return copy


def test_copy_is_whole_and_of_the_same_shape(tmp_path: Path) -> None:
    source, folder = tmp_path / "small.F16.gguf", tmp_path / "copies"
    gguf_files.write_llama(source, SMALL, weights="f16", seed=1)
    folder.mkdir()
    # Q8_0 takes 8.5 bits per weight, F16 takes 16.
    assert copied(source, folder).tensor_bytes / gguf_header.check_parts(source).tensor_bytes == pytest.approx(8.5 / 16, rel=0.05)


@pytest.mark.nightly("long")
def test_copy_of_the_default_model_is_whole_and_of_the_same_shape(tmp_path: Path) -> None:
    # The model has 134,515,008 weights.
    assert copied(model_discovery.installed(), tmp_path).tensor_bytes / 134_515_008 == pytest.approx(8.5 / 8, rel=0.01)


def test_nothing_is_left_where_the_copy_fails(tmp_path: Path) -> None:
    source = tmp_path / "damaged.gguf"
    source.write_bytes(model_discovery.installed().read_bytes()[:100_000])
    with pytest.raises(OSError, match=r"llama\.cpp could not write"):
        requantize.requantize(source, tmp_path / "copy.gguf")
    assert list(tmp_path.iterdir()) == [source]
