import itertools
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine.embedding_loop import Pooled
from shared.gguf.gguf_header import PoolingKind

ROWS = [(1.0, 2.0, 2.0), (3.0, 0.0, 4.0), (5.0, 6.0, 0.0)]


def unpacked(vector: bytes | None) -> tuple[float, ...]:
    assert vector is not None
    return struct.unpack(f"<{len(vector) // 4}f", vector)


@pytest.mark.parametrize(
    ("pooling", "pieces", "expected"),
    [
        pytest.param(PoolingKind.MEAN, [(ROWS[0], 3)], (1 / 3, 2 / 3, 2 / 3), id="one piece is made one long"),
        pytest.param(PoolingKind.MEAN, [((0, 4, 0), 1), ((8, 0, 0), 2)], (16 / 272**0.5, 4 / 272**0.5, 0), id="pieces weigh by tokens"),
        pytest.param(PoolingKind.CLS, [(ROWS[0], 1), (ROWS[1], 9)], (1 / 3, 2 / 3, 2 / 3), id="the first token speaks"),
        pytest.param(PoolingKind.LAST, [(ROWS[0], 9), (ROWS[1], 1)], (0.6, 0, 0.8), id="the last token speaks"),
    ],
)
def test_pooled(pooling: PoolingKind, pieces: list[tuple[tuple[float, ...], int]], expected: tuple[float, ...]) -> None:
    pooled = Pooled(pooling)
    for vector, tokens in pieces:
        pooled.add(vector, tokens)
    assert unpacked(pooled.packed(3)) == pytest.approx(expected, abs=1e-6)


def test_truncated_vector_is_normalized_again() -> None:
    pooled = Pooled(PoolingKind.MEAN)
    pooled.add((3.0, 4.0, 100.0), 1)
    assert unpacked(pooled.packed(2)) == pytest.approx((0.6, 0.8))


@pytest.mark.parametrize("vector", [(0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)], ids=["of zeros", "with no number", "without end"])
def test_zero_vector_has_no_direction(vector: tuple[float, ...]) -> None:
    pooled = Pooled(PoolingKind.MEAN)
    pooled.add(vector, 1)
    assert pooled.packed(2) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(1, 10)), min_size=1, max_size=30), st.data())
def test_mean_does_not_depend_on_the_split(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    cuts = sorted({0, len(rows), *data.draw(st.lists(st.integers(0, len(rows)), max_size=5))})
    pieces, whole = Pooled(PoolingKind.MEAN), Pooled(PoolingKind.MEAN)
    for begin, end in itertools.pairwise(cuts):
        pieces.add(mean(rows[begin:end]), end - begin)
    whole.add(mean(rows), len(rows))
    assert unpacked(pieces.packed(2)) == pytest.approx(unpacked(whole.packed(2)), abs=1e-6)


def mean(rows: list[tuple[float, float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
