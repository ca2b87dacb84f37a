"""Parts of files: how they are split, and what they are bound to."""

from dataclasses import replace
from uuid import UUID

import pytest

from features.files.gateway.rules import sealed_parts
from features.files.gateway.rules.sealed_parts import PART_BYTES, PartPlace, PartSplitter
from shared import errors
from shared.types import TenantId

PLACE = PartPlace(TenantId(UUID(int=1)), UUID(int=2), 3, is_last=False)
SECRET = "s" * 16


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 7])
@pytest.mark.parametrize("piece", [PART_BYTES // 3, PART_BYTES, 3 * PART_BYTES])
def test_parts_have_all_bytes_in_order_and_only_the_last_is_shorter(size: int, piece: int) -> None:
    data, splitter, parts = bytes(range(256)) * (size // 256 + 1), PartSplitter(), list[bytearray]()
    for at in range(0, size, piece):
        parts += splitter.push(data[:size][at : at + piece])
    assert all(len(part) == PART_BYTES for part in parts)
    last = splitter.end()
    assert b"".join([*parts, last]) == data[:size]
    assert 0 < len(last) <= PART_BYTES or not size


def test_a_part_opens_only_in_its_place() -> None:
    sealed = PLACE.seal(b"text", SECRET)
    assert PLACE.unseal(sealed, 4, SECRET) == b"text"
    places = (
        replace(PLACE, tenant=TenantId(UUID(int=9))),
        replace(PLACE, file=UUID(int=9)),
        replace(PLACE, number=0),
        replace(PLACE, is_last=True),
    )
    for place in places:
        with pytest.raises(errors.FileDamaged):
            place.unseal(sealed, 4, SECRET)
    for damaged, size, secret in ((sealed[:-1], 4, SECRET), (b"", 4, SECRET), (sealed, 5, SECRET), (sealed, 4, "t" * 16)):
        with pytest.raises(errors.FileDamaged):
            PLACE.unseal(damaged, size, secret)


def test_ranges_have_every_byte_once() -> None:
    sizes, data = [4, 4, 2], b"0123456789"
    parts = [data[:4], data[4:8], data[8:]]
    for start in range(11):
        for end in range(start, 11):
            found = b"".join(parts[number][wanted] for number, wanted in sealed_parts.slices(sizes, start, end))
            assert found == data[start:end]
