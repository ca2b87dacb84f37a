"""A background task that fails starts again, and the process says so; what must end the process still does."""

import asyncio
from collections.abc import Iterator

import pytest

from shared import errors
from shared.background import failure_texts, tasks
from shared.background.tasks import FailingTasks
from shared.timing.backoff import Backoff


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RESTART", Backoff(first_seconds=0.0, longest_seconds=0.0))


@pytest.fixture
def counted() -> Iterator[list[str]]:
    found: list[str] = []
    before = tasks.failing.set(FailingTasks(found.append))
    yield found
    tasks.failing.reset(before)


class Work:
    """Raises the given errors in turn, and then ends."""

    def __init__(self, *ends: Exception) -> None:
        self.ends = list(ends)

    async def run(self) -> None:
        await asyncio.sleep(0)
        if self.ends:
            raise self.ends.pop(0)


async def test_a_task_that_fails_starts_again_until_it_ends(counted: list[str]) -> None:
    group = ExceptionGroup("tasks of a task", [ValueError("a secret"), errors.Unavailable("auth is away")])
    work = Work(ValueError("a secret"), group, errors.NotFound("no such row"))
    await tasks.keep("notices", work.run)
    assert counted == ["notices"] * 3
    assert tasks.failing.get().names() == ["notices"]


@pytest.mark.parametrize("end", [errors.BadSettings("a wrong file"), errors.NodeRevoked("revoked")])
async def test_what_must_end_the_process_does(counted: list[str], end: Exception) -> None:
    for raised in (end, ExceptionGroup("tasks", [end])):
        with pytest.raises((type(end), ExceptionGroup)):
            await tasks.keep("notices", Work(raised).run)
        with pytest.raises((type(end), ExceptionGroup)):
            await tasks.attempt("notices", Work(raised).run)
    assert counted == []


async def test_a_task_that_works_again_is_not_shown_for_ever(counted: list[str]) -> None:
    now = 0.0
    shown = FailingTasks(counted.append, lambda: now)
    shown.note("one", 60.0)
    assert shown.names() == ["one"]
    now = 60.0 + tasks.SOUND_SECONDS
    assert shown.names() == []


async def test_a_round_that_only_waits_for_a_peer_is_no_failure(counted: list[str]) -> None:
    assert not await tasks.attempt("prices", Work(errors.Unavailable("PostgreSQL does not answer")).run)
    assert counted == []
    assert not await tasks.attempt("prices", Work(ValueError("odd")).run)
    assert (counted, tasks.failing.get().names()) == (["prices"], ["prices"])
    assert await tasks.attempt("prices", Work().run)
    assert tasks.failing.get().names() == []


def test_the_description_of_a_failure_has_the_place_and_no_text() -> None:
    def parse() -> None:
        int("sk-secret")

    try:
        parse()
    except ValueError as error:
        text = failure_texts.describe(error)
    assert text.startswith("ValueError at test_tasks.py:")
    assert "in parse" in text
    assert "secret" not in text
    assert failure_texts.describe(errors.NotFound("the row of ada")) == "not_found (NotFound)"
