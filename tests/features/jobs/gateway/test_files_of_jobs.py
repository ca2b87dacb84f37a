"""Files that jobs read and write: the same file from several gateways, and none deleted while a job uses it."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from features.files.contract import FilePurpose, ListFiles
from features.files.gateway.rules.sealed_parts import PART_BYTES
from features.files.gateway.store import PREFIX, NewFile
from features.jobs.contract import JobKind, JobState, LineError
from features.jobs.gateway.store import JobStore, NewJob
from services.gateway.store import GatewayStore
from shared import errors
from shared.protocol import public_ids
from shared.stores import objects
from tests.features.files.gateway import file_site
from tests.features.files.gateway.file_site import ADA, Site
from tests.features.jobs.gateway.moves import move_all
from tests.services.gateway.http_answers import problem

LARGE = os.urandom(2 * PART_BYTES + 12345)
OUTPUT = NewFile("out.jsonl", FilePurpose.BATCH_OUTPUT, 3600.0)


@pytest.fixture
async def site(plain_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with file_site.running(plain_url, objects.open_store(str(tmp_path / "store"), {}), most_bytes=10) as found:
        yield found


async def order(site: Site, input_file: UUID | None = None) -> tuple[JobStore, UUID]:
    jobs = JobStore(site.database, GatewayStore(site.database))
    new = NewJob(
        id=uuid4(), owner=ADA, kind=JobKind.BATCH, endpoint="/v1/completions", seed=1, seconds=60, kept_seconds=60, input_file=input_file
    )
    return jobs, (await jobs.create(new)).id


async def pieces(data: bytes, fails_at: int | None = None) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 300_000):
        if fails_at is not None and at >= fails_at:
            raise errors.Unavailable("the gateway dies")
        yield data[at : at + 300_000]


async def write(site: Site, file: UUID, data: bytes = LARGE, fails_at: int | None = None) -> None:
    await site.storage.write(ADA.tenant_id, ADA.user_id, file, pieces(data, fails_at), OUTPUT)


def public(file: UUID) -> str:
    return public_ids.encode(PREFIX, file)


async def test_what_one_gateway_has_half_written_another_writes_again(site: Site) -> None:
    file = uuid4()
    for cut in (0, PART_BYTES + 1, 2 * PART_BYTES + 1):
        with pytest.raises(errors.Unavailable):
            await write(site, file, fails_at=cut)
        with pytest.raises(errors.NotFound):
            await site.storage.find(ADA.tenant_id, public(file))
    await write(site, file)
    await write(site, file, fails_at=0)
    assert await site.read(public(file)) == LARGE
    facts = (await site.storage.find(ADA.tenant_id, public(file))).facts
    assert (facts.size, facts.purpose, facts.name) == (len(LARGE), FilePurpose.BATCH_OUTPUT, "out.jsonl")
    assert facts.expires_at is not None
    assert (facts.expires_at - facts.created_at).total_seconds() == 3600


async def test_a_gateway_that_was_stopped_for_a_while_harms_nothing(site: Site) -> None:
    file, old = uuid4(), pieces(LARGE)

    async def stopped() -> AsyncIterator[bytes]:
        async for piece in old:
            yield piece
        await write(site, file)

    with pytest.raises(errors.Unavailable):
        await site.storage.write(ADA.tenant_id, ADA.user_id, file, stopped(), OUTPUT)
    assert await site.read(public(file)) == LARGE


async def test_a_file_that_was_left_for_hours_is_written_after_it_is_deleted(site: Site) -> None:
    file = uuid4()
    with pytest.raises(errors.Unavailable):
        await write(site, file, fails_at=PART_BYTES)
    async with site.database.transaction() as transaction:
        assert transaction._connection is not None
        await transaction._connection.execute("UPDATE files SET state = 'deleting'")
    with pytest.raises(errors.NotFound):
        await write(site, file)
    await site.storage.clean()
    await write(site, file)
    assert await site.read(public(file)) == LARGE


async def test_output_counts_to_the_quota_and_is_stored_whatever_it_is(site: Site) -> None:
    await write(site, uuid4())
    with pytest.raises(errors.NotAllowed, match="exceed the limit"):
        await site.store(b"1")


async def test_a_file_that_a_job_uses_stays_until_its_end(site: Site) -> None:
    made = await site.store(b"line", expires_seconds=3600)
    input_file = public_ids.decode(PREFIX, made.id)
    jobs, job = await order(site, input_file)
    async with site.database.transaction() as transaction:
        assert transaction._connection is not None
        await transaction._connection.execute("UPDATE files SET expires_at = now() - interval '1 s'")
    await site.storage.clean()
    with pytest.raises(errors.NotFound):
        await site.storage.find(ADA.tenant_id, made.id)
    assert input_file is not None
    assert (await site.storage.find_used(ADA.tenant_id, input_file)).facts.size == 4
    await jobs.refuse(job, [LineError("empty_file", "no lines")])
    await site.storage.clean()
    assert await site.count("files") == 0


async def test_to_delete_a_file_that_a_job_uses_is_refused(site: Site) -> None:
    made = await site.store(b"line")
    jobs, job = await order(site, public_ids.decode(PREFIX, made.id))
    found = await jobs.find(ADA.tenant_id, job)
    assert found is not None
    await write(site, found.output_file, b"half of it")
    for file in (made.id, public(found.output_file)):
        async with site.http() as http:
            problem(await http.delete(f"/v1/files/{file}"), 409, "in_use")
    await jobs.cancel(job)
    await move_all(jobs)
    await jobs.end(job)
    ended = await jobs.find(ADA.tenant_id, job)
    assert ended is not None
    assert ended.state is JobState.CANCELLED
    for file in (made.id, public(found.output_file)):
        await site.storage.delete_of(ADA, file)
    assert await site.count("files") == 0


async def test_nobody_sees_the_input_that_jobs_have_for_themselves(site: Site) -> None:
    made = await site.store(b"line", purpose=FilePurpose.JOB_INPUT)
    assert (await site.storage.list_of(ADA.tenant_id, ListFiles())).files == ()
    for forbidden in (site.storage.find(ADA.tenant_id, made.id), site.storage.delete_of(ADA, made.id)):
        with pytest.raises(errors.NotFound):
            await forbidden
    async with site.http() as http:
        answer = await http.post("/v1/files", files={"file": ("a", b"x")}, data={"purpose": "job_input"})
        problem(answer, 400, "bad_request")
    file = public_ids.decode(PREFIX, made.id)
    assert file is not None
    found = await site.storage.find_used(ADA.tenant_id, file)
    assert b"".join([piece async for piece in site.storage.read(found, 0, 4)]) == b"line"
