"""A worker is paused while a file exists."""

import asyncio
from pathlib import Path

from services.inference.announcements import WorkerPause
from tests.services.inference.standins import until


def test_pause_survives_a_restart(tmp_path: Path) -> None:
    (tmp_path / "paused").touch()
    assert WorkerPause(tmp_path / "paused").is_on
    assert not WorkerPause(tmp_path / "none").is_on
    assert not WorkerPause(None).is_on


async def test_pause_and_resume_are_reported_once_each(tmp_path: Path) -> None:
    file = tmp_path / "paused"
    pause = WorkerPause(file)
    seen: list[bool] = []
    watching = asyncio.create_task(pause.watch(lambda: seen.append(pause.is_on), 0.001))
    file.touch()
    await until(lambda: seen == [True])
    file.unlink()
    await until(lambda: seen == [True, False])
    watching.cancel()
    await asyncio.wait({watching})


async def test_without_a_file_there_is_nothing_to_watch() -> None:
    await WorkerPause(None).watch(lambda: None)
