"""What backups cost, and how long restores take. Rows are random UUIDs and digests, which compress like real ones.

copying    a base backup (compressed, encrypted, into a folder) against pg_basebackup into nothing; then its restore against tar -x of the
           same archive on the same disk
loop       how long the agent's event loop stops at most while it makes a base backup and ships changes, without waits for a CPU; its memory
replaying  how long the restore of a database of 10 GB takes with 4 GB of log behind its backup, from the speeds of this one
lines      auth's start with 100,000 lines of the recovery log that its database lacks
beside     answers at 100 requests a second: without backups, with them, and during a base backup; the stacks take turns
revoking   revoking a key, which waits until the recovery log's line is on the disk, against renaming it, which does not

The size is an option: `--megabytes 2000` for the large database.
"""

import asyncio
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import asyncpg

from bench import calls, processes, report, tenants
from bench.calls import Call
from bench.http_load import Spread
from bench.report import Options, Rows
from features.backup.stack import catalog, layout, sealing
from features.backup.stack.agent import base_backup
from features.backup.stack.restoring import recovered_database, restore_plan
from features.backup.stack.restoring.recovered_database import RestoreSource
from features.backup.stack.restoring.restore_plan import LATEST, RestoreTarget
from services.auth import store
from services.auth.audit.audit_store import AuditStore
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.recovery.auth_replay import auth_replay
from shared.api import auth
from shared.api.method import Method, Request
from shared.recovery.log_place import LogPlace
from shared.recovery.recovery_log import RecoveryLog
from shared.recovery.recovery_store import RecoveryStore
from shared.recovery.rollback import RecoveryStart
from shared.telemetry import Metrics
from shared.types import NodeId
from stack.secret_files import POSTGRES_ADMIN
from tests import people
from tests.features.backup.stack import copied_database as copies
from tests.features.backup.stack.copied_database import CopiedDatabase
from tests.servers import PostgresServer, running
from tests.shared.recovery import test_recovery_lines

ROW_BYTES = 190
FILL = """
INSERT INTO bench_rows (id, owner, digest, signature)
SELECT gen_random_uuid(), gen_random_uuid(), sha256(gen_random_uuid()::text::bytea), sha512(gen_random_uuid()::text::bytea)
FROM generate_series(1, $1)
"""
#: The database whose restore is extrapolated, and the log behind its backup (BACKUP_BASE_AFTER_WAL).
LARGE_MB, LARGE_LOG_MB, RTO_SECONDS = 10_000, 4_000, 300
LINES = 100_000
A_SECOND = 100


async def _fill(admin: asyncpg.Connection, megabytes: int) -> None:
    for _ in range(max(1, megabytes // 50)):
        await admin.execute(FILL, 50_000_000 // ROW_BYTES, timeout=600)


@asynccontextmanager
async def _database(options: Options) -> AsyncIterator[CopiedDatabase]:
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as folder, copies.provisioned_server() as server:
        await copies.migrate(server)
        async with copies.copied_database(server, Path(folder)) as found, found.admin() as admin:
            # As the stack's superuser is called, by which a restored database is asked.
            await admin.execute(f"CREATE ROLE {POSTGRES_ADMIN} SUPERUSER LOGIN")
            await admin.execute("CREATE TABLE bench_rows (id uuid, owner uuid, digest bytea, signature bytea)")
            await _fill(admin, options.megabytes)
            await admin.execute("CHECKPOINT")
            yield found


async def _copy_plainly(found: CopiedDatabase, stdout: int | BinaryIO = subprocess.DEVNULL) -> None:
    words = ("-D", "-", "-Ft", "-X", "none", "--checkpoint=fast", "--manifest-checksums=SHA256")
    async with found.source.program("pg_basebackup", *words, stdout=stdout) as copy:
        assert await copy.process.wait() == 0, copy.said


async def _measure_copying(rows: Rows, _shared: None, options: Options) -> None:
    async with _database(options) as found, found.shipping():
        archive, target = found.folder.parent / "plain.tar", found.folder.parent / "unpacked"
        with archive.open("wb") as file:
            await _copy_plainly(found, file)
        megabytes = archive.stat().st_size / 1e6

        async def rate(work: Call) -> float:
            """Return the MB/s."""
            seconds = await calls.seconds_of(work)
            shutil.rmtree(target, ignore_errors=True)
            return megabytes / seconds

        async def untar() -> None:
            target.mkdir()
            process = await asyncio.create_subprocess_exec("tar", "-x", "--no-same-owner", "-C", str(target), "-f", str(archive))
            assert await process.wait() == 0

        backing_up, plainly = partial(base_backup.make, found.place, found.source, label=""), partial(_copy_plainly, found)
        copied = await report.take_turns({"ours": partial(rate, backing_up), "plain": partial(rate, plainly)}, options.rounds)
        restore = partial(recovered_database.unpack, *await _read_backup(found), layout.DATA, target, progress=_quiet)
        restored = await report.take_turns({"ours": partial(rate, restore), "plain": partial(rate, untar)}, options.rounds)
    claim, rival = f"{options.megabytes:,} MB", "pg_basebackup into nothing"
    rows.paired(f"a base backup of {claim}", copied["ours"], "MB/s", rival, copied["plain"], at_least=0.4)
    rows.paired(f"fetch, decrypt and unpack {claim}", restored["ours"], "MB/s", "tar -x", restored["plain"], at_least=0.35)


async def _measure_loop(rows: Rows, _shared: None, options: Options) -> None:
    async with _database(options) as found, found.admin() as admin:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.features.backup.agent_loop"), env={"PATH": os.environ["PATH"], **found.agent_environment()},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        async with processes.watching_memory(process.pid, 0.1) as held:
            while not (await catalog.read(found.place.store, found.place.mesh)).backups:
                await admin.execute(FILL, 1_000_000 // ROW_BYTES)
        process.terminate()
        _, said = await process.communicate()
    rows.alone(f"a base backup of {options.megabytes:,} MB: the longest pause of the agent's loop", float(said), "ms", at_most=50)
    rows.alone(f"a base backup of {options.megabytes:,} MB: the agent holds at most", max(held), "MB", at_most=150)


async def _read_backup(found: CopiedDatabase) -> tuple[RestoreSource, layout.BackupManifest]:
    mesh = await catalog.read_mesh(found.place.store, None)
    assert mesh is not None
    return RestoreSource(found.place.store, mesh, (found.identity,)), (await catalog.read(found.place.store, mesh)).backups[-1]


def _quiet(_what: str, _done: int, _of: int) -> None:
    pass


async def _measure_replaying(rows: Rows, _shared: None, options: Options) -> None:
    """The log is that of inserting the same amount once more."""
    async with _database(options) as found:
        async with found.shipping() as shipping, found.admin() as admin:
            await base_backup.make(found.place, found.source, label="")
            await _fill(admin, options.megabytes)
            await admin.execute("CREATE INDEX ON bench_rows (id)", timeout=600)
            await shipping.ship_partial()
            while shipping.lag_seconds != 0:
                await shipping.ship_partial()
        source, backup = await _read_backup(found)
        plan = restore_plan.plan(await catalog.read(source.store, source.mesh), LATEST, RestoreTarget(), {})
        folder = found.folder.parent / "recovered"
        log, moments = len(plan.segments) * backup.segment_size / 1e6, [time.perf_counter()]
        await recovered_database.fetch_wal(source, plan, folder / "wal", _quiet)
        moments.append(time.perf_counter())
        await recovered_database.unpack(source, backup, layout.DATA, folder / "data", progress=_quiet)
        moments.append(time.perf_counter())
        async with recovered_database.recovered(folder, plan, _quiet):
            moments.append(time.perf_counter())
    fetching, unpacking, replaying = (after - before for before, after in itertools.pairwise(moments))
    plain = backup.part(layout.DATA).plain_size / 1e6
    seconds = LARGE_MB * unpacking / plain + LARGE_LOG_MB * (fetching + replaying) / log
    rows.alone("so 10 GB and 4 GB of log are restored in", seconds, "s", at_most=RTO_SECONDS)


async def _measure_lines(rows: Rows, _shared: None, _options: Options) -> None:
    """Mostly revoked keys, as in a mesh with many machines that make their own."""
    with running(PostgresServer) as server, tempfile.TemporaryDirectory() as folder:
        url = server.url(await server.new_database("auth"))
        users, made = [UUID(int=number + 1) for number in range(10_000)], [UUID(int=10**6 + number) for number in range(80_000)]
        connection = await asyncpg.connect(url, server_settings={"search_path": "auth"})
        people_of = "SELECT id, 'u'||n, 'u'||n||'@example.org', 'h', 'user' FROM unnest($1::uuid[]) WITH ORDINALITY AS t(id, n)"
        await connection.execute(f"INSERT INTO users (id, username, email, password_hash, role) {people_of}", users)
        keys_of = "SELECT id, $2, 'k'||n, 'n'||n, 'p' FROM unnest($1::uuid[]) WITH ORDINALITY AS t(id, n)"
        await connection.execute(f"INSERT INTO api_keys (id, user_id, key_hash, name, preview) {keys_of}", made, users[0])
        await connection.execute("ANALYZE")
        work = [("key.revoked", str(key)) for key in made] + [("user.disabled", str(user)) for user in users]
        work += [("user.credentials_changed", str(user)) for user in users]
        random.Random(1).shuffle(work)
        place = LogPlace("auth", NodeId("U" + "A" * 55), test_recovery_lines.MESH, test_recovery_lines.KEYS, Path(folder))
        assert place.file is not None
        place.file.write_bytes(b"".join(test_recovery_lines.texts(test_recovery_lines.chain_of(work))))
        metrics = Metrics("auth")
        async with store.opened(url) as database:

            async def hash_password(_password: str) -> str:
                return "h"

            rows_of = RecoveryStore(database, "auth")
            log = RecoveryLog(rows_of, place, metrics.recovery_log_behind)
            start = time.perf_counter()
            replay = auth_replay(rows_of, PrivacyStore(database), AuditStore(database), hash_password)
            await RecoveryStart(rows_of, log, place, metrics.database_restored).begin(replay)
            took = time.perf_counter() - start
        assert await connection.fetchval("SELECT max(number) FROM recovery_log") == len(work) == LINES
        await connection.close()
    rows.alone(f"auth's start with {LINES:,} lines to replay", took, "s", at_most=10)


async def _measure_beside(rows: Rows, _shared: None, options: Options) -> None:
    """The stack with backups rests while the other one is asked, except for its agent, which gets no turn."""
    async with AsyncExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-bench-"))
        without = await opened.enter_async_context(tenants.opened(10, HYPERSWARM="off"))
        backups = {"BACKUP_TO": f"{folder}/store", "BACKUP_RECIPIENTS": sealing.recipient_of(sealing.new_identity())}
        stack = await opened.enter_async_context(tenants.opened(10, HYPERSWARM="off", **backups))
        assert (await stack.running.aicli("stack", "backup", "--label", "first")).status == 0
        async with stack.running.database("gateway") as database:
            await database.execute("CREATE TABLE bench_rows (id uuid, owner uuid, digest bytea, signature bytea)")
            await _fill(database, options.megabytes)

        async def ask(one: tenants.Tenants) -> float:
            outcome = await tenants.load(one.port, one.keys, Spread(int(A_SECOND * options.seconds), options.seconds), 16)
            assert len(outcome.good) == len(outcome.answers), outcome.statuses
            return outcome.percentile(0.95)

        async def ask_beside_a_backup() -> float:
            process = await stack.running.start_aicli("stack", "backup", "--json")
            await asyncio.sleep(1)  # it has started to copy
            p95 = await ask(stack)
            await process.communicate()
            assert process.returncode == 0
            return p95

        await ask(without), await ask(stack)  # connections, caches
        ways: dict[str, Callable[[], Awaitable[float]]] = {
            "none": partial(ask, without),
            "shipping": partial(ask, stack),
            "copying": ask_beside_a_backup,
        }
        took = await report.take_turns(ways, options.rounds)
    claim = f"answers at {A_SECOND}/s, p95"
    rows.paired(f"{claim}: changes are sent to the store", took["shipping"], "ms", "without backups", took["none"], at_most=1.1)
    rows.paired(f"{claim}: during a base backup", took["copying"], "ms", "without backups", took["none"], at_most=1.5)


async def _measure_revoking(rows: Rows, _shared: None, options: Options) -> None:
    """Both change a row and add one to the audit log; only a revocation waits until its line is on the disk."""
    revoked, renamed = [], []
    async with tenants.opened(1, HYPERSWARM="off") as stack, people.api_client(stack.running) as api_client:
        person = await api_client.register("revoking")

        async def seconds_of(method: Method[Request, auth.ApiKey], request: Request) -> float:
            start = time.perf_counter()
            await api_client.mesh.rpc.call(method, request, credential=person.access_token)
            return time.perf_counter() - start

        for number in range(options.revocations):
            key = str((await api_client.make_key(person, f"key {number}")).id)
            renamed.append(1000 * await seconds_of(auth.rename_api_key, auth.RenameApiKey(key, f"renamed {number}")))
            revoked.append(1000 * await seconds_of(auth.revoke_api_key, auth.RevokeApiKey(key)))
    with_log, without = (report.percentile(took, 0.95) for took in (revoked, renamed))
    rows.against("revoking a key, p95", with_log, "ms", "renaming it", without)
    rows.alone("  added by the recovery log", with_log - without, "ms", at_most=10)


if __name__ == "__main__":
    parts: dict[str, report.Part] = {
        "copying": _measure_copying,
        "loop": _measure_loop,
        "replaying": _measure_replaying,
        "lines": _measure_lines,
        "beside": _measure_beside,
        "revoking": _measure_revoking,
    }
    report.run(__doc__, parts, limits=(1800.0, 600.0), megabytes=(300, 100), rounds=(5, 2), seconds=(15.0, 5.0), revocations=(200, 50))
