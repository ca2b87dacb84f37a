"""Starts a batch of a file once, follows batches to their end, and puts their answers in the order of their lines."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import msgspec

from cli.output import printing
from cli.output.progress_line import ProgressLine
from features.files import contract as files_contract
from features.files.cli import commands as files
from features.files.contract import FilePurpose
from features.jobs import contract, lists
from features.jobs.contract import BatchEndpoint, BatchWindow, JobFacts, JobKind, JobState
from shared import amounts, errors
from shared.timing.backoff import Backoff
from shared.timing.transfer_speed import TransferSpeed

if TYPE_CHECKING:
    from cli.connection import CliConnection

Found = TypeVar("Found")

_LOOK_SECONDS = 1.0
#: A batch that has ended is not run again for so long. None runs longer than that either.
_RECENT = timedelta(hours=24)
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=5.0)
#: In a row, in more than a minute.
_MAX_FAILURES = 20
_CALL_SECONDS = 30.0
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Line(msgspec.Struct):
    custom_id: str = ""


@dataclass(frozen=True, slots=True)
class BatchOrder:
    #: Of its file.
    name: str
    endpoint: BatchEndpoint
    window: BatchWindow
    #: The entry of its metadata that says what it was made of.
    origin: tuple[str, str]


class BatchClient:
    """The calls of one command. They are repeated while gateways or their database are away: for a while, or as long as a batch runs."""

    def __init__(self, connection: "CliConnection", show: ProgressLine) -> None:
        self._connection, self._show = connection, show
        self._max_failures: float = _MAX_FAILURES

    async def get(self, batch: str) -> JobFacts:
        return await self._persist(lambda: self._connection.call(contract.get_job, contract.GetJob(batch), deadline_seconds=_CALL_SECONDS))

    async def find(self, order: BatchOrder) -> JobFacts | None:
        """Return the newest batch of the last two days that was made of the same."""
        after, since = None, datetime.now(UTC) - 2 * _RECENT
        while True:
            request = contract.ListJobs(JobKind.BATCH, after)
            page = await self._persist(lambda: self._connection.call(contract.list_jobs, request))  # noqa: B023
            for job in page.jobs:
                if job.endpoint == order.endpoint and order.origin in job.metadata.items():
                    return job
                if job.created_at < since:
                    return None
            if not page.has_more:
                return None
            after = page.jobs[-1].id

    async def start(self, order: BatchOrder, content: bytes, after: JobFacts | None) -> JobFacts:
        """Upload a file and make a batch of it. ``after``: what ``find`` returned. Commands that found the same make one batch."""
        file = await self._persist(lambda: files.store(self._connection, order.name, content, {"purpose": FilePurpose.BATCH}))
        unique = "\n".join((*order.origin, order.endpoint, "" if after is None else after.id))
        request = contract.CreateBatch(
            file, order.endpoint, order.window, dict([(lists.FILE_NAME, order.name), order.origin]), sha256(unique.encode()).hexdigest()
        )
        try:
            made = await self._persist(lambda: self._connection.call(contract.create_batch, request, deadline_seconds=_CALL_SECONDS))
        except errors.IdempotencyConflict:
            # Another command was faster, with a file of its own.
            found = await self.find(order)
            if found is None:
                raise
            made = found
        printing.note(f"{made.id} is started")
        return made

    async def follow(self, job: JobFacts) -> JobFacts:
        """Return it when it has ended."""
        self._max_failures = math.inf
        speed = TransferSpeed(time.monotonic(), lists.ended(job))
        while job.ended_at is None:
            if not job.total:
                speed = TransferSpeed(time.monotonic())
            self._tell(job, speed.measure(time.monotonic(), lists.ended(job)))
            await asyncio.sleep(_LOOK_SECONDS)
            job = await self.get(job.id)
        self._max_failures = _MAX_FAILURES
        self._tell(job)
        self._show.close()
        return job

    async def write_results(self, job: JobFacts, output: BinaryIO) -> None:
        """Write its answers and errors in the order of its lines."""
        with TemporaryFile() as answers, TemporaryFile() as given:
            if job.output_file is not None:
                await self._read(job.output_file, answers)
            lines: Iterable[bytes] = answers
            if job.error_file is not None and job.input_file is not None:
                failures = await self._failures(job.error_file)
                lines = in_order(_lines(await self._read(job.input_file, given)), answers, failures)
            await asyncio.to_thread(output.writelines, lines)
            await asyncio.to_thread(output.flush)

    async def failed_lines(self, job: JobFacts) -> bytes:
        """Return those lines of its input that have no answer."""
        if job.ended_at is None or job.error_file is None or job.input_file is None:
            what = "still runs" if job.ended_at is None else "has no lines that failed" if job.total else "ran no lines"
            raise errors.BadRequest(f"{job.id} {what}", hint=f"see `aicli batch show {job.id}`")
        failures = await self._failures(job.error_file)
        with TemporaryFile() as given:
            return b"".join(line for name, line in _lines(await self._read(job.input_file, given)) if name in failures)

    async def _failures(self, file: str) -> dict[str, bytes]:
        """Return the error of each line that has no answer. They are short."""
        with TemporaryFile() as failed:
            return dict(_lines(await self._read(file, failed)))

    async def _read(self, file: str, output: BinaryIO) -> BinaryIO:
        """Download a file, and return ``output`` at its beginning."""

        async def read() -> None:
            output.seek(0)
            output.truncate()
            facts = await self._connection.call(files_contract.get_file, files_contract.GetFile(file))
            await files.receive(self._connection, facts, output)

        await self._persist(read)
        output.seek(0)
        return output

    async def _persist(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Raises the last error of too many in a row."""
        failures = 0
        while True:
            try:
                return await ask()
            except errors.AimeshError as error:
                failures += 1
                if not error.retryable or failures >= self._max_failures:
                    raise
                if failures == 1:
                    self._show.close()
                    printing.note(f"{error.message}; trying again until it works")
                await asyncio.sleep(max(_BACKOFF.pause(failures), error.retry_after_seconds or 0.0))

    def _tell(self, job: JobFacts, lines_per_second: float = 0.0) -> None:
        self._show.write(describe(job, lines_per_second), f"{job.state} {job.waiting}")


def is_current(job: JobFacts) -> bool:
    """Whether running the same again gives this batch: it still runs, or has ended in the last 24 hours with results."""
    if job.ended_at is None:
        return job.cancelling_at is None
    return job.state in {JobState.COMPLETED, JobState.EXPIRED} and datetime.now(UTC) - job.ended_at < _RECENT


def describe(job: JobFacts, lines_per_second: float = 0.0) -> str:
    left = lists.seconds_left(job, lines_per_second)
    reason = lists.reason(job)
    parts = (
        lists.state(job)[0] + (f" ({reason})" if reason else ""),
        lists.progress(job),
        f"{job.failed:,} failed" if job.failed else None,
        f"{lines_per_second:,.1f} lines/s" if lines_per_second else None,
        None if left is None else f"{amounts.show_duration(left)} left",
        f"{amounts.written(job.cost_micro)} credits" if job.cost_micro else None,
    )
    return ", ".join(part for part in parts if part is not None)


def in_order(given: Iterable[tuple[str, bytes]], answers: BinaryIO, failures: dict[str, bytes]) -> Iterator[bytes]:
    """Put errors where their lines are. The answers are in the order of their lines."""
    for name, _ in given:
        yield failures[name] if name in failures else answers.readline()


def _lines(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Return the custom_id of each line, and the line."""
    read = msgspec.json.Decoder(_Line).decode
    for line in file:
        if text := line.removeprefix(_BYTE_ORDER_MARK).strip():
            yield read(text).custom_id, text + b"\n"
