"""Blocks of a file: the same however it is read, and refused if they can't be those of its size."""

import itertools
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.models import block_list


@given(st.integers(0, 3 * block_list.BLOCK_BYTES), st.lists(st.integers(1, 2 * block_list.BLOCK_BYTES), max_size=4))
def test_blocks_do_not_depend_on_how_a_file_is_read(size: int, cuts: list[int]) -> None:
    data = bytes(size)
    starts = sorted({0, size, *(cut for cut in cuts if cut < size)})
    pieces = [data[start:end] for start, end in itertools.pairwise(starts)]
    found = list(block_list.compute(pieces))
    step = block_list.BLOCK_BYTES
    assert found == [sha256(data[at : at + step]).digest() for at in range(0, size, step)]
    assert len(found) == block_list.count(size)
    assert sum(block_list.length(size, index) for index in range(len(found))) == size
    block_list.check(b"".join(found), size)


@pytest.mark.parametrize("size", [0, 1, block_list.BLOCK_BYTES, block_list.BLOCK_BYTES + 1])
def test_a_list_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(errors.BadRequest, match="list of blocks"):
        block_list.check(bytes(32) * (block_list.count(size) + 1), size)
