"""Batches that are validated and finalized, on a real PostgreSQL: malformed input, stores that are away, and gateways that die."""

import asyncio
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from features.files.gateway.store import PREFIX as FILE
from features.jobs.contract import JobState
from features.jobs.gateway import batch_output, batch_work
from features.jobs.gateway.batch_work import BatchWork
from features.jobs.gateway.job_orders import facts_of
from features.jobs.gateway.line_inputs import LineInputs
from features.jobs.gateway.rules.batch_input import MAX_LINE_BYTES, MAX_LINES, BatchInput, NewLine
from features.jobs.gateway.store import Job, StoredLine
from shared import errors
from shared.api.auth import IdentifyOwner, Principal
from shared.background.deferred_rows import DeferredRows
from shared.protocol import public_ids
from shared.stores import objects
from shared.types import RequestId
from tests.features.files.gateway.file_site import ADA
from tests.features.jobs.gateway import batch_site
from tests.features.jobs.gateway.batch_site import MODEL, BatchSite, jsonl, line
from tests.testnet import until

MIXED = [line("a"), line("b"), line("c"), line("d")]
MAX_MEMORY_BYTES = 64 << 20


@pytest.fixture
async def site(plain_url: str, tmp_path: Path) -> AsyncIterator[BatchSite]:
    async with batch_site.running(plain_url, objects.open_store(str(tmp_path / "store"), {})) as found:
        yield found


def mixed(custom_id: str) -> tuple[int, dict[str, Any]]:
    return (400, {"error": {"message": "no"}}) if custom_id == "b" else batch_site.good(custom_id)


async def test_a_good_batch_runs_and_ends_with_its_results_in_input_order(site: BatchSite) -> None:
    job = await site.validate(jsonl(MIXED), metadata={"a": "b"})
    assert (job.state, job.total, job.model, job.price_id) == (JobState.IN_PROGRESS, 4, MODEL, 1)
    await site.answer(job, mixed)
    job = await site.end(job)
    assert (job.state, job.done, job.failed) == (JobState.COMPLETED, 3, 1)
    output, failed = await site.read(job.output_file), await site.read(job.error_file)
    assert [each["custom_id"] for each in output] == ["a", "c", "d"]
    assert output[0]["response"]["body"] == {"id": "chat-a", "choices": []}
    assert [(each["response"]["status_code"], each["error"]) for each in output + failed] == [(200, None)] * 3 + [(400, None)]
    assert failed[0]["response"]["body"] == {"error": {"message": "no"}}
    assert len({each["id"] for each in output + failed}) == 4
    assert all(each["id"].startswith("batch_req_") and each["response"]["request_id"] for each in output + failed)
    assert await site.events() == [("batch.completed", job.public_id)]
    assert await site.files.count("job_lines") == 0


async def test_without_such_lines_there_is_no_file(site: BatchSite) -> None:
    job = await site.validate(jsonl(MIXED))
    await site.answer(job)
    job = await site.end(job)
    assert await site.files.count("files") == 2, "the input and the output"
    shown = facts_of(job)
    assert (shown.output_file, shown.error_file) == (public_ids.encode(FILE, job.output_file), None)


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        pytest.param(b"", ["empty_file"], id="empty"),
        pytest.param(b"\n" * 1_000_000, ["empty_file"], id="a million blank lines"),
        pytest.param(bytes(range(128, 256)) * 100, ["invalid_encoding"], id="binary"),
        pytest.param(b"x" * (5 * MAX_LINE_BYTES), ["line_too_large"], id="one long line"),
        pytest.param(jsonl([line("a"), line("a")]), ["duplicate_custom_id"], id="duplicate"),
        pytest.param(jsonl([line("a"), line("b", body={"model": "other"})]), ["mismatched_model"], id="two models"),
        pytest.param(
            jsonl([line("a", method="GET"), line("b", url="/v1/embeddings")]), ["invalid_method", "invalid_url"], id="method, url"
        ),
        pytest.param(jsonl([line("a", body={"model": "unknown"})]), ["model_not_found"], id="unknown model"),
        pytest.param(jsonl(line(str(i)) for i in range(MAX_LINES + 1)), ["too_many_lines"], id="too many"),
    ],
)
async def test_malformed_input_fails_the_batch_and_says_why(site: BatchSite, data: bytes, codes: list[str]) -> None:
    job = await site.validate(data)
    assert (job.state, [error.code for error in job.errors]) == (JobState.FAILED, codes)
    assert job.ended_at is not None
    assert await site.events() == [("batch.failed", job.public_id)]
    assert await site.files.count("job_lines") == 0


async def test_more_lines_than_the_plan_has_room_for_are_refused(site: BatchSite) -> None:
    site.most_lines = 5
    first = await site.validate(jsonl(MIXED))
    second = await site.validate(jsonl(MIXED))
    assert (first.state, second.state) == (JobState.IN_PROGRESS, JobState.FAILED)
    assert (second.errors[0].code, second.errors[0].message) == (
        "queued_lines_exceeded", "4 of your lines wait; with 4 more they would exceed your limit of 5 lines",
    )  # fmt: skip
    await site.answer(first, most=3)
    assert (await site.validate(jsonl(MIXED))).state is JobState.IN_PROGRESS


async def test_a_damaged_or_missing_input_file_fails_the_batch(site: BatchSite, tmp_path: Path) -> None:
    job = await site.order(jsonl(line(str(i), body={"model": MODEL, "x": f"{i * 7919 % 10007}" * 90}) for i in range(9000)))
    (part,) = (tmp_path / "store" / "files").rglob("*/0")
    part.write_bytes(part.read_bytes()[::-1])
    await site.work.validate()
    assert [error.code for error in (await site.find(job)).errors] == ["file_damaged"]
    job = await site.order(jsonl(MIXED))
    await site.execute("UPDATE files SET state = 'deleting'")
    await site.work.validate()
    assert [error.code for error in (await site.find(job)).errors] == ["file_not_found"]


async def test_an_owner_without_rights_cancels_the_batch(site: BatchSite) -> None:
    def refuse(_owner: IdentifyOwner) -> Principal:
        raise errors.NotAuthenticated("this API key was revoked")

    site.identify = refuse
    job = await site.validate(jsonl(MIXED))
    assert (job.state, job.waiting) == (JobState.CANCELLING, "this API key was revoked")
    job = await site.end(job)
    assert job.state is JobState.CANCELLED
    assert await site.files.count("files") == 1, "only the input"


async def test_the_owner_is_asked_for_as_who_ordered_it(site: BatchSite) -> None:
    asked = []

    def identify(owner: IdentifyOwner) -> Principal:
        asked.append(owner)
        return ADA

    site.identify = identify
    await site.validate(jsonl(MIXED))
    assert asked == [IdentifyOwner(ADA.user_id, None, ADA.team_id)]


async def test_while_a_store_or_auth_is_away_the_job_waits_and_says_why(site: BatchSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_owner: IdentifyOwner) -> Principal:
        raise errors.NotReachable("no auth service on the mesh")

    site.identify = refuse
    job = await site.validate(jsonl(MIXED))
    assert (job.state, job.waiting) == (JobState.VALIDATING, "no auth service on the mesh")
    await site.work.validate()
    site.identify = lambda _owner: ADA
    await site.work.validate()
    assert (await site.find(job)).state is JobState.VALIDATING, "not before its time"
    await site.execute("UPDATE jobs SET waits_until = now()")
    await site.work.validate()
    job = await site.find(job)
    assert (job.state, job.waiting) == (JobState.IN_PROGRESS, None)
    await site.answer(job)

    async def fail(*_args: object) -> None:
        raise errors.InsufficientStorage("the disk is full")

    monkeypatch.setattr(site.files.objects, "put", fail)
    monkeypatch.setattr(site.files.rows, "finish", fail)
    job = await site.end(job)
    assert (job.state, job.waiting) == (JobState.FINALIZING, "the disk is full")
    monkeypatch.undo()
    await site.lose_leases()
    job = await site.end(job)
    assert (job.state, job.waiting) == (JobState.COMPLETED, None)
    assert len(await site.read(job.output_file)) == 4


async def test_an_odd_job_keeps_no_other_from_being_validated(site: BatchSite, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, fine = await site.order(jsonl(MIXED)), await site.order(jsonl(MIXED))
    read = BatchWork._read

    async def read_or_raise(work: BatchWork, job: Job) -> BatchInput:
        if job.id == odd.id:
            raise ValueError("a line of ada")
        return await read(work, job)

    monkeypatch.setattr(BatchWork, "_read", read_or_raise)
    await site.work.validate()
    assert ((await site.find(odd)).state, (await site.find(fine)).state) == (JobState.VALIDATING, JobState.IN_PROGRESS)
    assert (await site.find(odd)).waiting == "an internal error; the gateway's log has it"
    (kept,) = await DeferredRows(site.files.database, "gateway").list("job", 10)
    assert kept.id == str(odd.id)
    assert "ada" not in kept.error


async def test_lines_that_never_ran_say_why(site: BatchSite) -> None:
    expired, cancelled = await site.validate(jsonl(MIXED)), await site.validate(jsonl([line("e")]))
    await site.answer(expired, most=1)
    await site.execute("UPDATE job_lines SET state = 'failed', error_code = 'lease_lost_repeatedly' WHERE custom_id = 'b'")
    await site.execute(f"UPDATE jobs SET expires_at = now(), failed = 1 WHERE id = '{expired.id}'")
    await site.orders.cancel_of(ADA, cancelled.public_id)
    expired, cancelled = await site.end(expired), await site.find(cancelled)
    assert (expired.state, cancelled.state) == (JobState.EXPIRED, JobState.CANCELLED)
    assert [each["custom_id"] for each in await site.read(expired.output_file)] == ["a"]
    found = [*await site.read(expired.error_file), *await site.read(cancelled.error_file)]
    assert [(each["custom_id"], each["response"], each["error"]["code"]) for each in found] == [
        ("b", None, "lease_lost_repeatedly"), ("c", None, "batch_expired"), ("d", None, "batch_expired"), ("e", None, "batch_cancelled"),
    ]  # fmt: skip
    assert sorted(await site.events()) == [("batch.cancelled", cancelled.public_id), ("batch.expired", expired.public_id)]


async def test_a_result_that_was_damaged_is_an_error_and_never_another_text(site: BatchSite) -> None:
    job = await site.validate(jsonl(MIXED))
    await site.answer(job)
    await site.execute("UPDATE job_lines SET result = (SELECT result FROM job_lines WHERE line = 0) WHERE line = 1")
    job = await site.end(job)
    found = (await site.read(job.output_file))[1]
    assert (found["custom_id"], found["response"], found["error"]["code"]) == ("b", None, "file_damaged")


async def test_a_cancelled_job_is_not_validated_further(site: BatchSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "_ADDED_LINES", 2)
    monkeypatch.setattr(batch_work, "_READ_BYTES", 200)
    job = await site.order(jsonl(line(str(i)) for i in range(100)))
    add_lines, added = site.jobs.add_lines, list[int]()

    async def add(job_id: Any, lines: Any) -> None:
        await add_lines(job_id, lines)
        added.append(len(lines))
        if len(added) == 3:
            await site.orders.cancel_of(ADA, job.public_id)

    monkeypatch.setattr(site.jobs, "add_lines", add)
    await site.work.validate()
    assert len(added) == 3
    job = await site.end(job)
    assert (job.state, job.total) == (JobState.CANCELLED, 0)
    await add_lines(job.id, [])
    assert await site.files.count("job_lines") == 0


class Dying:
    """A store whose gateway dies at a call, before it or after."""

    def __init__(self, real: Any, counter: "Counter") -> None:
        self._real, self._counter = real, counter

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **more: Any) -> Any:
            self._counter.count()
            result = await found(*args, **more)
            self._counter.count()
            return result

        return call


class Dead(BaseException):
    pass


class Counter:
    def __init__(self, dies_at: int) -> None:
        self.left = dies_at

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Dead


async def survive(site: BatchSite, step: Callable[[Any], Awaitable[None]]) -> None:
    """Let one gateway after the other die, each a step later, until one has done it all."""
    for dies_at in range(1, 200):
        counter = Counter(dies_at)
        work = site.worker(f"gateway {dies_at}", Dying(site.jobs, counter), Dying(site.files.storage, counter))
        try:
            await step(work)
        except Dead:
            await site.lose_leases()
            continue
        if counter.left > 0:
            return
    raise AssertionError("it never ends")


async def test_gateways_that_die_at_any_step_change_nothing(site: BatchSite) -> None:
    job = await site.order(jsonl(MIXED))
    await survive(site, lambda work: work.validate())
    job = await site.find(job)
    assert (job.state, job.total, await site.files.count("job_lines")) == (JobState.IN_PROGRESS, 4, 4)
    await site.answer(job, mixed)
    await survive(site, lambda work: work.move())
    await survive(site, lambda work: work.finalize())
    job = await site.find(job)
    assert job.state is JobState.COMPLETED
    assert [each["custom_id"] for each in await site.read(job.output_file)] == ["a", "c", "d"]
    assert [each["custom_id"] for each in await site.read(job.error_file)] == ["b"]
    assert await site.events() == [("batch.completed", job.public_id)]


async def test_a_gateway_that_was_stopped_while_it_finalized_harms_nothing(site: BatchSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "_PAGE_LINES", 2)
    job = await site.validate(jsonl(MIXED))
    await site.answer(job)
    await site.work.move()
    results, calls = site.jobs.results, 0

    async def stopped(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            await site.lose_leases()
            monkeypatch.setattr(site.jobs, "results", results)
            await site.worker("two").finalize()
        return await results(*args, **more)

    monkeypatch.setattr(site.jobs, "results", stopped)
    await site.work.finalize()
    job = await site.find(job)
    assert (job.state, job.waiting) == (JobState.COMPLETED, None)
    assert [each["custom_id"] for each in await site.read(job.output_file)] == ["a", "b", "c", "d"]


async def test_the_event_loop_reads_and_writes_no_lines_itself(site: BatchSite, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write, main, sizes = BatchInput.read, batch_output.write_some, threading.get_ident(), list[int]()

    def seen(size: int) -> None:
        assert threading.get_ident() != main
        sizes.append(size)

    def reads(reading: BatchInput, data: bytes) -> Iterator[NewLine]:
        seen(len(data))
        yield from read(reading, data)

    def writes(job: Job, lines: Iterator[StoredLine], secret: str) -> bytes:
        written = write(job, lines, secret)
        seen(len(written))
        return written

    monkeypatch.setattr(BatchInput, "read", reads)
    monkeypatch.setattr(batch_output, "write_some", writes)
    job = await site.validate(jsonl(line(str(i), body={"model": MODEL, "text": f"{i}" * 9000}) for i in range(200)))
    await site.answer(job, lambda custom_id: (200, {"text": custom_id * 9000}))
    await site.end(job)
    assert sum(sizes) > 8 << 20
    # Pieces, and the line that a piece ends with.
    assert max(sizes) <= (256 << 10) + 30_000


async def test_lines_are_read_in_the_turn_of_their_tenant(site: BatchSite) -> None:
    job = await site.order(jsonl([line("a")]))
    async with site.turns.turn(ADA.tenant_id):
        validating = asyncio.create_task(site.work.validate())
        await until(lambda: site.turns._users[ADA.tenant_id] == 2)
        assert (await site.find(job)).state is JobState.VALIDATING
    await validating
    assert (await site.find(job)).state is JobState.IN_PROGRESS


async def test_large_batches_take_little_memory(site: BatchSite) -> None:
    data = jsonl(line(str(i), body={"model": MODEL, "text": f"{i}" * 2000}) for i in range(4000))
    assert len(data) > 28 << 20
    job = await site.order(data)
    del data
    tracemalloc.start()
    await site.work.validate()
    assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY_BYTES // 2
    job = await site.find(job)
    assert job.total == 4000
    await site.answer(job, lambda custom_id: (200, {"text": custom_id * 10_000}), most=600)
    tracemalloc.reset_peak()
    await site.execute("UPDATE jobs SET expires_at = now()")
    job = await site.end(job)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_MEMORY_BYTES
    assert len(await site.read(job.output_file)) == 600


async def becomes(site: BatchSite, job: Job, state: JobState) -> None:
    async with asyncio.timeout(20):
        while (await site.find(job)).state is not state:  # noqa: ASYNC110 - PostgreSQL sets no event
            await asyncio.sleep(0.02)


async def test_the_tasks_do_it_all(site: BatchSite) -> None:
    task = asyncio.create_task(site.work.run())
    job = await site.order(jsonl(MIXED))
    await becomes(site, job, JobState.IN_PROGRESS)
    await site.answer(job)
    site.work.ended.set()
    await becomes(site, job, JobState.COMPLETED)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_lines_are_read_from_input_that_nobody_sees_or_that_has_expired(site: BatchSite) -> None:
    inputs, owned = LineInputs(site.files.storage), await site.validate(jsonl(MIXED))
    await site.execute("UPDATE files SET expires_at = now()")

    async def lines() -> AsyncIterator[bytes]:
        yield jsonl(MIXED)

    hidden = await site.orders.add_batch(ADA, await site.orders.store_input(ADA, lines()), batch_site.ENDPOINT, None)
    await site.work.validate()
    for _ in range(2):
        claimed = await site.jobs.claim(MODEL, [RequestId(uuid4()) for _ in range(4)], "r")
        (job,) = [await site.find(job) for job in (owned, hidden) if job.id == claimed[0].job_id]
        assert [await inputs.read(job, each) for each in claimed] == [json.dumps(each["body"]).encode() for each in MIXED]
        await site.jobs.cancel(job.id)
        await site.jobs.stop([each.request_id for each in claimed])
        await site.end(job)
    await site.files.storage.clean()
    assert await site.files.count("files WHERE purpose <> 'batch_output'") == 0
