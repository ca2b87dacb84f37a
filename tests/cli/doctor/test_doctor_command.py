"""`aicli doctor` names the first problem, and continues where that makes sense."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import msgspec
import pytest

from cli import profile
from cli.cli_context import CliContext
from cli.connection import CliConnection
from cli.doctor import doctor_checks
from cli.doctor.findings import DoctorFinding
from cli.profile import Profile
from shared import errors, features
from shared.api import auth, deferral, gateway, servers
from shared.api.gateway import Check, NodeRow, ServiceHealth, UserQuota
from shared.api.ledger import Account, Allowance
from shared.types import Credential, MicroCredits, ModelName, NodeId, Role, Tier, UserId
from tests.cli.fake_mesh import FakeMesh, Shell

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HEALTHY = ServiceHealth(status="healthy", checks=(Check("PostgreSQL", True),), workers=1, models=(ModelName("smollm2"),), in_flight=0)


@asynccontextmanager
async def listening(greeting: bytes) -> AsyncIterator[int]:
    """Serve a greeting on a port, then hang up."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


QUOTA = UserQuota(user_id=UserId(UUID(int=1)), tier=Tier.FREE, limit_per_hour=100, used_this_hour=1, remaining=99, resets_at=NOW)
NO_MONEY = Account(MicroCredits(5), MicroCredits(5), MicroCredits(0), Allowance(100, 90, 10, NOW))


def well(mesh: FakeMesh) -> None:
    mesh.answer(auth.list_api_keys, auth.ApiKeys(()))
    mesh.answer(gateway.get_service_health, HEALTHY)
    mesh.answer(gateway.get_user_quota, QUOTA)
    mesh.answer(gateway.list_nodes, gateway.NodeRows(()))
    for method in (deferral.list_of_gateway, deferral.list_of_auth):
        mesh.answer(method, deferral.DeferredItems(()))


def use(shell: Shell, port: int) -> None:
    path = shell.folder / ".aimesh/profile.toml"
    profile.write(path, replace(profile.read(path), nats_url=f"nats://127.0.0.1:{port}"))


async def examined(shell: Shell) -> list[DoctorFinding]:
    return await doctor_checks.examine(CliContext(shell.environment, shell.folder, shell.mesh.open))


def wrong(findings: list[DoctorFinding]) -> list[str]:
    return [finding.check for finding in findings if finding.ok is False]


async def test_all_is_well(shell: Shell) -> None:
    well(shell.mesh)
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert wrong(findings) == []
    checks = ["profile", "disk", "node key", "API key", "NATS", "auth", "gateway", "quota", "workers", "models"]
    assert [finding.check for finding in findings] == checks
    assert not any(finding.hint for finding in findings)


async def test_features_have_checks_of_their_own(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(_connection: CliConnection) -> list[DoctorFinding]:
        return [DoctorFinding("clock", False, "it has stopped")]

    well(shell.mesh)
    monkeypatch.setattr(features, "modules", lambda place: [SimpleNamespace(check=check)] if place == "cli.doctor" else [])
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        assert wrong(await examined(shell)) == ["clock"]


async def test_items_that_failed_in_the_background(shell: Shell) -> None:
    well(shell.mesh)
    failed = [
        deferral.DeferredItem("gateway", kind, item, 10, next_at, "ValueError", NOW)
        for kind, item, next_at in (("payment", "cs_1", NOW), ("notice", "ada", None))
    ]
    shell.mesh.answer(deferral.list_of_gateway, deferral.DeferredItems(tuple(failed)))
    shell.mesh.answer(deferral.list_of_auth, errors.UnknownMethod("an older auth"))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        finding = (await examined(shell))[-1]
    assert (finding.check, finding.ok) == ("background", False)
    assert finding.detail == "2 items failed (notice, payment), 1 of them after all tries"
    assert finding.hint == "see aicli admin deferred list"


def test_without_a_profile_nothing_else_is_checked(tmp_path: Path) -> None:
    shell = Shell(tmp_path, FakeMesh(), {"HOME": str(tmp_path)})
    result = shell("doctor", "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (rows[0]["check"], rows[0]["ok"]) == ("profile", False)
    assert "make up" in rows[0]["hint"]
    assert {row["ok"] for row in rows[1:]} == {None}


def test_text_output_says_what_to_do(tmp_path: Path) -> None:
    lines = Shell(tmp_path, FakeMesh(), {"HOME": str(tmp_path)})("doctor").stdout.splitlines()
    assert lines[0].startswith("WRONG  profile")
    assert lines[1].strip().startswith("fix: run `make up`")


async def test_nats_is_down(shell: Shell) -> None:
    async with listening(b"") as port:
        pass
    use(shell, port)
    findings = await examined(shell)
    assert wrong(findings) == ["NATS"]
    assert findings[-1] == DoctorFinding("models", None, "not checked: fix NATS first")


async def test_nats_rejects_the_node(shell: Shell) -> None:
    @asynccontextmanager
    async def refused(_profile: Profile) -> AsyncIterator[CliConnection]:
        raise errors.NotAllowed("the NATS server refused this node's key", hint="aicli stack init")
        yield

    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await doctor_checks.examine(CliContext(shell.environment, shell.folder, refused))
    assert wrong(findings) == ["mesh"]
    assert findings[-1] == DoctorFinding("models", None, "not checked: fix mesh first")


async def test_another_server_listens_there(shell: Shell) -> None:
    async with listening(b"HTTP/1.1 400 Bad Request\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert next(finding.detail for finding in findings if finding.ok is False).endswith("is not NATS")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nats://127.0.0.1:99999", "not an address"),
        ("nats://[::1", "not an address"),
        ("nats://192.0.2.1:4222", "not encrypted"),
        ("tls://name.invalid:1", "cannot connect"),
        ("nats://[::1]:1", "nothing listens at [::1]:1"),
    ],
)
async def test_invalid_address(shell: Shell, url: str, message: str) -> None:
    path = shell.folder / ".aimesh/profile.toml"
    profile.write(path, replace(profile.read(path), nats_url=url))
    finding = next(finding for finding in await examined(shell) if finding.ok is False)
    assert message in finding.detail


@pytest.mark.parametrize(
    ("key", "message"),
    [(None, "the profile has no key"), ("aip_live_tooshort", "the key is incomplete")],
)
async def test_invalid_key(shell: Shell, key: str | None, message: str) -> None:
    path = shell.folder / ".aimesh/profile.toml"
    profile.write(path, replace(profile.read(path), api_key=None if key is None else Credential(key)))
    finding = next(finding for finding in await examined(shell) if finding.check == "API key")
    assert finding.ok is False
    assert message in finding.detail


async def test_each_part_of_the_mesh_is_named(shell: Shell) -> None:
    well(shell.mesh)
    shell.mesh.answer(auth.list_api_keys, errors.NotAuthenticated("this key is revoked"))
    degraded = ServiceHealth(status="degraded", checks=(Check("Valkey", False, "does not answer"),), workers=0, models=(), in_flight=0)
    shell.mesh.answer(gateway.get_service_health, degraded)
    sick = NodeRow(
        id=NodeId("UWORKER"), role=Role.WORKER, service="inference", path="nats", alive=True, refused=False, usable=False,
        why_not="the model loads",
        models=(), since=NOW, version="0.1.0", running=0, queued=0, slots=4,
    )  # fmt: skip
    gone = NodeRow(
        id=NodeId("UGONE"), role=Role.WORKER, service="inference", path="nats", alive=False, refused=False, usable=False, why_not="silent",
        models=(), since=NOW, version="0.1.0", running=0, queued=0, slots=4,
    )  # fmt: skip
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((sick, gone)))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert wrong(findings) == ["auth", "Valkey", "workers", "nodes"]
    assert all(finding.hint for finding in findings if finding.ok is False)


async def test_used_node_with_a_broken_transport_is_named(shell: Shell) -> None:
    well(shell.mesh)
    lame = NodeRow(
        id=NodeId("UWORKER"), role=Role.WORKER, service="inference", path="direct", alive=True, refused=False, usable=True, why_not="",
        models=(), since=NOW, version="0.1.0", running=0, queued=0, slots=4, trouble="NATS: not connected: the server refused this key",
    )  # fmt: skip
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((lame,)))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert [finding.detail for finding in findings if finding.check == "nodes"] == [
        "inference UWORKER… gets requests, but NATS: not connected: the server refused this key"
    ]


async def test_what_a_used_node_lacks_is_named_without_failing(shell: Shell) -> None:
    well(shell.mesh)
    limited = NodeRow(
        id=NodeId("UWORKER"), role=Role.WORKER, service="inference", path="nats", alive=True, refused=False, usable=True, why_not="",
        models=(), since=NOW, version="0.1.0", running=0, queued=0, slots=4, warning="a library is missing. To build it: make up",
    )  # fmt: skip
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((limited,)))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert wrong(findings) == []
    assert [finding for finding in findings if finding.check == "nodes"] == [
        DoctorFinding("nodes", None, "inference UWORKER…: a library is missing. To build it: make up")
    ]


@pytest.mark.parametrize(
    ("workers", "hint"), [(1, ""), (0, "add a server with `aicli models add-server`, or start a worker with `aicli worker`")]
)
async def test_a_worker_that_waits_for_servers_is_no_fault(shell: Shell, workers: int, hint: str) -> None:
    well(shell.mesh)
    waiting = NodeRow(
        id=NodeId("UWORKER"), role=Role.WORKER, service="inference", path="nats", alive=True, refused=False, usable=False,
        why_not=servers.NO_SERVER, models=(), since=NOW, version="0.1.0", running=0, queued=0, slots=4,
    )  # fmt: skip
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((waiting,)))
    shell.mesh.answer(gateway.get_service_health, msgspec.structs.replace(HEALTHY, workers=workers))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert wrong(findings) == ([] if workers else ["workers"])
    assert [finding.hint for finding in findings if finding.check == "workers"] == [hint]
    assert [finding for finding in findings if finding.check == "nodes"] == [
        DoctorFinding("nodes", None, "inference UWORKER…: no server was added: see `aicli models add-server`")
    ]


async def test_who_is_logged_out_is_told_so_of_what_needs_a_key(shell: Shell) -> None:
    well(shell.mesh)
    shell.mesh.answer(gateway.list_nodes, errors.NotAuthenticated("no credential"))
    path = shell.folder / ".aimesh/profile.toml"
    profile.write(path, replace(profile.read(path), api_key=None))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert wrong(findings) == ["API key"]
    assert [one.detail for one in findings if one.check in {"quota", "nodes"}] == 2 * ["not checked: you are not logged in"]


async def test_no_gateway(shell: Shell) -> None:
    shell.mesh.answer(auth.list_api_keys, auth.ApiKeys(()))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        findings = await examined(shell)
    assert wrong(findings) == ["gateway"]
    assert findings[-1] == DoctorFinding("models", None, "not checked: fix gateway first")


@pytest.mark.parametrize(
    ("changed", "ok", "detail"),
    [
        ({}, True, "99 of 100 requests left this hour"),
        ({"remaining": 0}, False, "0 of 100 requests left this hour"),
        ({"limit_per_hour": gateway.NO_LIMIT}, True, "no hourly request limit"),
        ({"account": NO_MONEY}, False, "no tokens and no credits left"),
        ({"account": msgspec.structs.replace(NO_MONEY, allowance=None)}, False, "no credits left"),
        ({"account": msgspec.structs.replace(NO_MONEY, allowance=Allowance(100, 90, 9, NOW))}, True, "99 of 100 requests left this hour"),
        ({"account": msgspec.structs.replace(NO_MONEY, allowance=None, overage_micro=None)}, True, "99 of 100 requests left this hour"),
    ],
)
def test_remaining_quota(changed: dict[str, object], ok: bool, detail: str) -> None:
    found = doctor_checks._judge(msgspec.structs.replace(QUOTA, **changed))
    assert (found.ok, found.detail) == (ok, detail)
    assert bool(found.hint) != ok
