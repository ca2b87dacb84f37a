import pytest

from services.inference.queue_limits import QueueLimits
from shared import errors


def filled(jobs: int, slots: int = 2, queue: int = 3) -> QueueLimits:
    intake = QueueLimits("smollm2", slots, queue)
    for _ in range(jobs):
        intake.enter()
    return intake


@pytest.mark.parametrize(("jobs", "running", "queued"), [(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 2, 1), (5, 2, 3)])
def test_first_jobs_run_and_others_wait(jobs: int, running: int, queued: int) -> None:
    intake = filled(jobs)
    assert (intake.running, intake.queued) == (running, queued)


def test_job_beyond_the_queue_gets_retry_after() -> None:
    intake = filled(5)
    intake.mean_seconds = 4.0
    with pytest.raises(errors.Overloaded, match="queue is full") as refused:
        intake.enter()
    assert refused.value.retry_after_seconds == 8.0
    assert intake.in_flight == 5


def test_finished_job_frees_its_slot() -> None:
    intake = filled(5)
    intake.leave(1.0)
    intake.enter()
    assert intake.queued == 3


@pytest.mark.parametrize(
    ("jobs", "seconds"),
    [
        pytest.param(1, 0.0, id="no wait while a slot is free"),
        pytest.param(2, 5.0, id="a slot's share of the next job to end"),
        pytest.param(4, 15.0, id="and of those before it in the queue"),
    ],
)
def test_expected_wait(jobs: int, seconds: float) -> None:
    intake = filled(jobs)
    intake.mean_seconds = 10.0
    assert intake.expected_wait_seconds() == seconds


def test_mean_follows_the_last_jobs() -> None:
    intake = filled(3)
    intake.leave(10.0)
    assert intake.mean_seconds == 10.0
    intake.leave(20.0)
    assert intake.mean_seconds == 12.0


def test_batch_jobs_take_no_room_of_live_ones() -> None:
    intake = filled(4)
    for _ in range(5):
        intake.enter(is_batch=True)
    with pytest.raises(errors.Overloaded):
        intake.enter(is_batch=True)
    intake.enter()
    intake.leave(9.0, is_batch=True)
    assert (intake.in_flight, intake.batch, intake.mean_seconds) == (5, 4, 0.0)
