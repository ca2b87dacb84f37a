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
    assert copy == replace(original, tensor_bytes=copy.tensor_bytes)
    # The model has 134,515,008 weights. Q8_0 has 8.5 bits for each.
    assert copy.tensor_bytes / 134_515_008 == pytest.approx(8.5 / 8, rel=0.01)
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_left_where_the_copy_fails(tmp_path: Path) -> None:
    source = tmp_path / "damaged.gguf"
    source.write_bytes(model_discovery.installed().read_bytes()[:100_000])
    with pytest.raises(OSError, match=r"llama\.cpp could not write"):
        requantize.requantize(source, tmp_path / "copy.gguf")
    assert list(tmp_path.iterdir()) == [source]
