"""Lines are read from parts of their input, which is read as rarely as possible."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from features.jobs.gateway.line_inputs import LineInputs
from features.jobs.gateway.store import ClaimedLine
from shared import errors

FILE, TENANT = UUID(int=1), UUID(int=2)


@dataclass
class _Facts:
    size: int


@dataclass
class _Job:
    tenant_id: UUID = TENANT
    input_file: UUID | None = FILE


@dataclass
class _Files:
    text: bytes
    reads: int = 0
    facts: _Facts = field(init=False)

    async def find_used(self, _tenant: UUID, _file: UUID) -> Any:
        self.facts = _Facts(len(self.text))
        return self

    async def read(self, _file: Any, start: int, end: int) -> AsyncIterator[bytes]:
        self.reads += 1
        await asyncio.sleep(0)
        yield self.text[start:end]


def line(start: int, size: int) -> ClaimedLine:
    return ClaimedLine(UUID(int=3), 0, UUID(int=4), 1, start, size, "c", datetime.now(UTC))  # type: ignore[arg-type]


async def test_lines_that_are_claimed_together_read_their_part_once() -> None:
    one = b'{"body": {"a": 1}}\n'
    files = _Files(one * 32)
    inputs = LineInputs(files)  # type: ignore[arg-type]
    found = await asyncio.gather(*(inputs.read(_Job(), line(at * len(one), len(one) - 1)) for at in range(32)))  # type: ignore[arg-type]
    assert (found, files.reads) == ([b'{"a": 1}'] * 32, 1)


async def test_a_line_that_is_nested_too_deeply_here_is_damaged() -> None:
    """How deep is too deep depends on who reads it: validation may have let it pass."""
    deep = b'{"body": %s%s}' % (b"[" * 2000, b"]" * 2000)
    with pytest.raises(errors.FileDamaged):
        await LineInputs(_Files(deep)).read(_Job(), line(0, len(deep)))  # type: ignore[arg-type]
