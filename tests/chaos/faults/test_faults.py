"""The short version of `make chaos`: one fault of every kind, under a small load, at times drawn from a seed.

The seed is fixed in `make test` and random at night; CHAOS_SEED repeats a run.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests import tiers
from tests.chaos import run, table, world
from tests.chaos.world import World


@pytest.fixture(scope="module")
def seed() -> int:
    found = tiers.seed("CHAOS_SEED")
    print(f"CHAOS_SEED={found}")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small_world(seed: int) -> AsyncIterator[World]:
    async with world.opened(world.SHORT, seed) as opened:
        yield opened


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", table.SHORT)
async def test_fault(small_world: World, name: str) -> None:
    outcome = await run.one(small_world, name)
    print(f"CHAOS {outcome}")
    assert outcome.violations == ()


def test_the_page_has_a_row_for_every_fault() -> None:
    outcome = world.Outcome(
        fault="F2", what="kill -9", calls=10, ends={"done": 9, "overloaded": 1}, failing_seconds=0.5, longest_pause=2.0,
        recovered_seconds=3.0, books="10 settled", violations=("I2: a gap",), more="something",
    )  # fmt: skip
    page = table.page({"f2": [outcome, outcome]}, "a machine, seed 1.", repeats=2)
    assert "Runs per row: 2." in page
    assert "| F2 | kill -9 | 20 | 18 done, 2 overloaded | 2.0 | 0.5 | 3.0 | 10 settled | 2 |" in page
    assert "- F2, kill -9: something" in page
    assert "- F2, kill -9: I2: a gap" in page
    with pytest.raises(ValueError, match="fewer than 2 runs of f3"):
        table.page({"f2": [outcome, outcome], "f3": [outcome]}, "a machine, seed 1.", repeats=2)


def test_a_run_that_is_out_of_time_fails_and_writes_no_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @asynccontextmanager
    async def opened(scale: world.Scale, seed: int) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(world, "opened", opened)
    page = tmp_path / "faults.md"
    assert run.main(["--page", str(page), "--minutes", "-1"]) == 1
    assert not page.exists()
    assert "-1 minutes were over before" in capsys.readouterr().out


def test_the_page_says_what_ran_where_and_of_which_commit() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d, commit [0-9a-f]{12}( with changes)?, \d+ cores of .+, seed 7\.", run._machine(7))
