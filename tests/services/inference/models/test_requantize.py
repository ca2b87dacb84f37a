"""The faster copy of the default model, which set-up writes."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.engine import gguf_header
from services.inference.models import model_discovery, requantize


def test_copy_of_the_default_model_is_whole_and_of_the_same_shape(tmp_path: Path) -> None:
    source = model_discovery.installed()
    target = tmp_path / model_discovery.fast_copy(source).name
    requantize.requantize(source, target)
    copy, original = gguf_header.check_parts(target), gguf_header.check_parts(source)
    # 7 is llama.cpp's number of Q8_0, with 8.5 bits a weight.
    assert copy.file_type == 7
    assert copy == replace(original, file_type=7, tensor_bytes=copy.tensor_bytes)
    assert copy.tensor_bytes / copy.parameter_count == pytest.approx(8.5 / 8, rel=0.01)
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_left_where_the_copy_fails(tmp_path: Path) -> None:
    source = tmp_path / "damaged.gguf"
    source.write_bytes(model_discovery.installed().read_bytes()[:100_000])
    with pytest.raises(OSError, match=r"llama\.cpp could not write"):
        requantize.requantize(source, tmp_path / "copy.gguf")
    assert list(tmp_path.iterdir()) == [source]
