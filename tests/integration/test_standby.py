"""Whole sites with one store: a second site takes over, only one of two standbys wins, and the first site refuses requests."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from shared.api import recovery
from shared.types import SERVICE_ROLES
from stack import secret_files
from stack.recovery import sealing
from stack.servers import nats_server
from tests import people, stacks
from tests.stacks import RunningStack, until

pytestmark = [pytest.mark.timeout(400), pytest.mark.nightly("long")]


@dataclass(frozen=True, slots=True)
class Sites:
    folder: Path
    identity: Path
    first: RunningStack

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def plan(self, name: str, **variables: str) -> RunningStack:
        """Return another site, whose home is empty."""
        home = self.folder / name
        environment = {**self.first.environment, **stacks.free_ports(), "AIMESH_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
        return RunningStack(home, {**environment, "SITE_NAME": name, **variables})

    @asynccontextmanager
    async def standby(self, site: RunningStack, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run `aicli stack standby`, and yield once it follows the store."""
        process = await site.start_aicli("stack", "standby", "--from", str(self.store), "--identity", str(self.identity), *more)
        try:
            assert process.stderr is not None
            async with asyncio.timeout(90):
                said = b""
                while b"following" not in said:
                    line = await process.stderr.readline()
                    assert line, said.decode()
                    said += line
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


@asynccontextmanager
async def two_sites(folder: Path, **variables: str) -> AsyncIterator[Sites]:
    secret = sealing.new_identity()
    identity = folder / "identity"
    identity.write_text(f"{secret}\n")
    backup = {"BACKUP_TO": str(folder / "store"), "BACKUP_RECIPIENTS": sealing.recipient_of(secret), "BACKUP_SHIP_SECONDS": "1"}
    more = {"INFERENCE_BACKEND": "echo", "HYPERSWARM": "off", "SITE_NAME": "first", "BACKUP_MB_PER_SECOND": "0"}
    async with stacks.stack(**more, **backup, **variables) as first:

        async def has_backup() -> bool:
            return any((folder / "store").glob("base/*/manifest.json"))

        await until(has_backup, seconds=60, what="a backup")
        yield Sites(folder, identity, first)


async def ask(site: RunningStack, key: str) -> httpx.Response:
    async with site.http(key) as http:
        return await http.post("/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "hello"}]})


def node_ids(site: RunningStack) -> dict[str, str]:
    return {node.name: node.node for node in nats_server.read_enrolled(site.place)}


async def test_one_of_two_standbys_takes_over_and_the_first_site_ends(tmp_path: Path) -> None:
    async with two_sites(tmp_path) as sites:
        first, sent = sites.first, tmp_path / "moved.json"
        standbys = [sites.plan(name, PROMOTE_COMMAND=f"tee {sent}") for name in ("second", "third")]
        async with sites.standby(standbys[0]) as one, sites.standby(standbys[1]) as two:
            refused = await standbys[0].aicli("stack", "up")
            assert (refused.status, "is a standby" in refused.err) == (2, True)
            async with people.api_client(first) as api_client:
                ann = await api_client.register("ann")
                late = await api_client.make_key(ann, "late")

                async def is_seen() -> bool:
                    found = await api_client.mesh.rpc.call(recovery.get_backups, recovery.GetBackups(), credential=api_client.admin_key)
                    return found.report is not None and {each.site for each in found.report.standbys} == {"second", "third"}

                await until(is_seen, seconds=40, what="the first site's report names both")
            outcomes = await asyncio.gather(*(site.aicli("stack", "promote", "--json", deadline_seconds=200) for site in standbys))
            await asyncio.gather(one.wait(), two.wait())
        by_status = {done.status: (site, done) for site, done in zip(standbys, outcomes, strict=True)}
        assert sorted(by_status) == [0, 2], outcomes
        (second, done), (loser, lost) = by_status[0], by_status[2]
        try:
            print(done.err)
            assert "lost_race" in lost.err
            report = done.json()
            assert (report["term"], report["command_error"]) == (2, "")
            assert json.loads(sent.read_text()) == {"site": second.environment["SITE_NAME"], "term": 2, "url": second.url("gateway")}
            answered = await ask(second, late.secret)
            assert answered.status_code == 200, answered.text
            refused_there = await ask(first, late.secret)
            assert (refused_there.status_code, refused_there.json()["error"]["aimesh_code"]) == (503, "site_replaced")
            # No node of the old site may be a node here.
            old, new = node_ids(first), node_ids(second)
            assert set(old) <= set(new)
            assert not set(old.values()) & set(new.values())
            async with second.database("auth") as database:
                revoked = {row["id"] for row in await database.fetch("SELECT id FROM nodes WHERE state = 'revoked'")}
            services = {old[name] for name, role in secret_files.NODES.items() if role in SERVICE_ROLES}
            assert services == revoked
            # The loser stays a standby, now of the winner.
            async with sites.standby(loser):
                pass
        finally:
            await second.down()
            await loser.aicli("stack", "down")


async def test_a_site_that_was_paused_runs_nothing_when_it_goes_on(tmp_path: Path) -> None:
    async with two_sites(tmp_path, SITE_LEASE="strict") as sites:
        first, second = sites.first, sites.plan("second")
        key = first.api_key

        async def is_strict() -> bool:
            return "strict" in (sites.store / "site" / "1.lease").read_text()

        await until(is_strict, seconds=30, what="the lease is strict")
        async with sites.standby(second):
            pids = [pid for pid in (await first.pids()).values() if pid is not None]
            with paused(pids):
                done = await second.aicli("stack", "promote", "--json", deadline_seconds=300)
                print(done.err)
            try:
                assert done.status == 0, done.err
                late = await ask(first, key)
                assert late.status_code == 503, late.text
                assert (await ask(second, key)).status_code == 200
            finally:
                await second.down()


@contextmanager
def paused(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
