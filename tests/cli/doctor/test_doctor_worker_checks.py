"""`aicli doctor` on a machine that joined with a ticket: each finding and its advice."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from pyhyperswarm import DhtStats

from cli import profile
from cli.cli_context import CliContext
from cli.doctor import doctor_checks, doctor_worker_checks
from cli.doctor.findings import DoctorFinding
from cli.machines import join
from cli.profile import Profile
from shared import errors
from shared.api import auth, gateway
from shared.identity import certificates, node_keys, private_file
from shared.identity.certificates import Subject
from shared.node import enrollment, membership_file
from shared.node.enrollment import EnrollmentOptions, EnrollmentRoute
from shared.node.membership_file import MembershipFile
from shared.types import MeshName, Role
from tests.cli.doctor.test_doctor_command import HEALTHY, well, wrong
from tests.cli.fake_mesh import Shell
from tests.front_door import FrontDoor
from tests.swarmnet import swarmnet

NOW = 1_700_000_000.0
CA = node_keys.Authority(node_keys.new_authority_seed())
KEY = node_keys.NodeKey(node_keys.new_seed())
BOX = DhtStats(host="5.5.5.11", port=49737, firewalled=True, randomized=False, nodes=3, bootstrapped=True)
ELSEWHERE = EnrollmentRoute(MeshName("home"), (CA.id,), ("5.5.5.1:4737",), ())
HERE = replace(ELSEWHERE, bootstrap=("127.0.0.1:4737",))
RELAYED = replace(ELSEWHERE, relays=(bytes(32),))


def kept(certificate: bytes, *, revoked: bool = False) -> MembershipFile:
    listed = certificates.issue_list(CA, 1, 1, (KEY.id,) if revoked else (), NOW)
    return MembershipFile(MeshName("home"), Role.WORKER, certificate, listed, (CA.id,))


def certified(at: float, key: node_keys.NodeKey = KEY, ca: node_keys.Authority = CA) -> bytes:
    return certificates.issue(ca, Subject(key.id, Role.WORKER), at)


@pytest.mark.parametrize(
    ("found", "ok", "message", "hint"),
    [
        pytest.param(kept(certified(NOW)), True, "worker until 2023-11-", "", id="good"),
        pytest.param(kept(certified(NOW - 26 * 3600)), False, "expired 2 h ago", "renewed as soon as auth is reachable", id="expired"),
        pytest.param(kept(certified(NOW + 3600)), False, "a clock is 1 h off", "NTP", id="from the future"),
        pytest.param(kept(certified(NOW), revoked=True), False, "was revoked", "new ticket", id="revoked"),
        pytest.param(kept(b""), False, "must approve", "aicli admin nodes approve", id="not approved yet"),
        pytest.param(
            kept(certified(NOW, node_keys.NodeKey(node_keys.new_seed()))), False, "belongs to another key", "join again", id="another key"
        ),
        pytest.param(
            kept(certified(NOW, KEY, node_keys.Authority(node_keys.new_authority_seed()))),
            False,
            "belongs to another mesh",
            "ticket",
            id="another CA",
        ),
    ],
)
def test_certificate(found: MembershipFile, ok: bool, message: str, hint: str) -> None:
    finding = doctor_worker_checks.check_certificate(found, KEY, NOW)
    assert finding.ok is ok
    assert message in finding.detail
    assert hint in finding.hint


@pytest.mark.parametrize(
    ("finding", "ok", "message", "hint"),
    [
        pytest.param(doctor_worker_checks.check_dht(BOX, ELSEWHERE), True, "3 nodes answer (5.5.5.1:4737)", "", id="the DHT answers"),
        pytest.param(
            doctor_worker_checks.check_dht(replace(BOX, nodes=0), ELSEWHERE), False, "no DHT node answers", "let UDP out", id="no DHT node"
        ),
        pytest.param(
            doctor_worker_checks.check_dht(replace(BOX, nodes=0), ELSEWHERE),
            False,
            "no DHT node answers",
            "the mesh may have a new address: ask for a new ticket",
            id="the mesh has moved",
        ),
        pytest.param(
            doctor_worker_checks.check_dht(replace(BOX, nodes=0), HERE),
            False,
            "127.0.0.1:4737",
            "DHT_HOST",
            id="a ticket of a DHT on loopback",
        ),
        pytest.param(
            doctor_worker_checks.check_nat(BOX, ELSEWHERE), True, "port-preserving (5.5.5.11:49737", "", id="a NAT that keeps ports"
        ),
        pytest.param(
            doctor_worker_checks.check_nat(replace(BOX, firewalled=False), ELSEWHERE),
            True,
            "none: this machine is reachable",
            "",
            id="open",
        ),
        pytest.param(
            doctor_worker_checks.check_nat(replace(BOX, port=None, randomized=True), RELAYED), True, "symmetric", "", id="symmetric"
        ),
        pytest.param(doctor_worker_checks.check_nat(BOX, HERE), True, "on this machine", "", id="no NAT between"),
        pytest.param(doctor_worker_checks.check_relay(BOX, RELAYED), True, "1 known", "", id="a relay"),
        pytest.param(doctor_worker_checks.check_relay(BOX, ELSEWHERE), True, "seldom needs one", "", id="no relay, and none needed"),
        pytest.param(
            doctor_worker_checks.check_relay(replace(BOX, randomized=True), ELSEWHERE),
            False,
            "may need one",
            "aicli mesh relay",
            id="a relay is missing",
        ),
        pytest.param(doctor_worker_checks.check_clock(3), True, "within 60 s", "", id="a good clock"),
        pytest.param(doctor_worker_checks.check_clock(660), False, "11 min behind auth's", "NTP", id="a late clock"),
        pytest.param(doctor_worker_checks.check_clock(-660), False, "11 min ahead of auth's", "NTP", id="an early clock"),
    ],
)
def test_findings(finding: DoctorFinding, ok: bool, message: str, hint: str) -> None:
    assert finding.ok is ok
    assert message in finding.detail
    assert hint in finding.hint
    assert bool(finding.hint) is (finding.ok is False)


async def test_joined_worker_is_checked_completely(tmp_path: Path) -> None:
    async with swarmnet() as net:
        running_service = (await net.start(FrontDoor)).service
        assert isinstance(running_service, FrontDoor)
        folder = join.Folder(tmp_path)
        private_file.create(folder.key, node_keys.new_seed)
        key = node_keys.load(folder.key)
        running_service.ca = net.ca
        running_service.members[key.id] = Role.WORKER
        bootstrap = tuple(str(address) for address in net.bootstrap)
        certificate = certificates.issue(net.ca, Subject(key.id, Role.WORKER), time.time())
        membership_file.save(
            folder.membership, MembershipFile(MeshName("test"), Role.WORKER, certificate, b"", (net.ca.id,), (), bootstrap)
        )
        folder.paused.touch()
        found = [finding async for finding in doctor_worker_checks.examine_worker(folder)]
        checks = ["worker", "running", "paused", "certificate", "Node.js", "sidecar", "DHT", "NAT", "relay", "way in", "clock", "member"]
        assert [finding.check for finding in found] == checks
        assert wrong(found) == ["running", "paused"]
        assert found[-1] == DoctorFinding("member", True, "auth renews the certificate")
        found = [finding async for finding in doctor_worker_checks.examine(membership_of(folder), key, is_in_use=True)]
        assert found[-1] == DoctorFinding("member", None, "not checked: a running worker uses the key")
        # Without an auth at the enrollment topic, the other findings stay the same.
        await net.nodes[0].stop()
        found = [finding async for finding in doctor_worker_checks.examine(membership_of(folder), key, find_seconds=0.5)]
        assert wrong(found) == ["way in"]
        assert found[-2:] == [DoctorFinding(check, None, "not checked: fix way in first") for check in ("clock", "member")]


def membership_of(folder: join.Folder) -> MembershipFile:
    found = folder.kept()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("beside", "error", "found"),
    [
        pytest.param(False, None, [("NATS", True)], id="HTTPS"),
        pytest.param(True, None, [("NATS", True), ("DHT", None)], id="HTTPS, and UDP is blocked"),
        pytest.param(False, errors.ApprovalPending("not yet"), [("NATS", True)], id="waits for approval"),
        pytest.param(True, errors.Unavailable("the HTTP proxy asks"), [("NATS", False), ("DHT", False)], id="both are blocked"),
    ],
)
async def test_one_way_into_the_mesh_is_enough(
    monkeypatch: pytest.MonkeyPatch, beside: bool, error: errors.AimeshError | None, found: list[tuple[str, bool | None]]
) -> None:
    asked: list[MembershipFile] = []

    async def renew(membership: MembershipFile, key: node_keys.NodeKey, *, options: EnrollmentOptions) -> MembershipFile:
        asked.append(membership)
        if error is not None:
            raise error
        return membership

    async def examine_swarm(*_: object, **__: object) -> AsyncIterator[DoctorFinding]:
        yield DoctorFinding("DHT", False, "no DHT node answers", "let UDP out")

    monkeypatch.setattr(enrollment, "renew_as_newcomer", renew)
    monkeypatch.setattr(doctor_worker_checks, "_examine_swarm", examine_swarm)
    joined = msgspec.structs.replace(kept(certified(NOW)), nats=("wss://ai.example.org/mesh?pin=abc",), beside=beside)
    findings = [each async for each in doctor_worker_checks.examine(joined, KEY)][1:]
    assert [(each.check, each.ok) for each in findings] == found
    assert [each.beside for each in asked] == [False], "the machine's own key: no other link over Hyperswarm"
    assert (findings[0].detail == "the HTTP proxy asks", "wss://ai.example.org:443/mesh)" in findings[0].detail) == (
        not findings[0].ok,
        findings[0].ok,
    )


async def test_machine_that_never_joined(tmp_path: Path) -> None:
    (finding,) = [finding async for finding in doctor_worker_checks.examine_worker(join.Folder(tmp_path))]
    assert (finding.ok, finding.hint) == (False, "aicli worker --join TICKET")


# --- a client's profile -------------------------------------------------------------------------------------------------


@pytest.fixture
def client(shell: Shell) -> Shell:
    """A profile made by `aicli mesh connect`."""
    path = shell.folder / ".aimesh/profile.toml"
    before = profile.read(path)
    mesh_file = path.with_name("client.mesh")
    profile.write(path, Profile(node_key_file=before.node_key_file, nats_url=None, mesh_file=mesh_file, api_key=before.api_key))
    membership_file.save(mesh_file, kept(certified(NOW)))
    return shell


async def lets_in(found: MembershipFile, key: node_keys.NodeKey) -> AsyncIterator[DoctorFinding]:
    yield DoctorFinding("relay", False, "none", "make one")
    yield DoctorFinding("way in", True, "found")
    yield DoctorFinding("clock", False, "11 min behind", "NTP")


async def keeps_out(found: MembershipFile, key: node_keys.NodeKey) -> AsyncIterator[DoctorFinding]:
    yield DoctorFinding("DHT", False, "no DHT node answers", "UDP?")
    yield DoctorFinding("way in", None, "not checked: fix DHT first")


def here(shell: Shell) -> CliContext:
    return CliContext(shell.environment, shell.folder, shell.mesh.open)


async def test_client_is_checked_from_its_certificate_to_the_models(client: Shell) -> None:
    well(client.mesh)
    found = await doctor_checks.examine(here(client), lets_in)
    assert wrong(found) == ["relay", "clock"]
    assert [finding.check for finding in found][-3:] == ["quota", "workers", "models"]
    assert "NATS" not in [finding.check for finding in found]


async def test_later_checks_are_skipped_without_a_connection(client: Shell) -> None:
    client.mesh.answer(auth.list_api_keys, auth.ApiKeys(()))
    client.mesh.answer(gateway.get_service_health, HEALTHY)
    found = await doctor_checks.examine(here(client), keeps_out)
    assert found[-4:] == [DoctorFinding(check, None, "not checked: fix DHT first") for check in ("auth", "gateway", "workers", "models")]
    assert client.mesh.calls == []


async def test_profile_without_its_membership_file(client: Shell) -> None:
    (client.folder / ".aimesh/client.mesh").unlink()
    found = await doctor_checks.examine(here(client), lets_in)
    assert wrong(found) == ["membership"]
    assert "aicli mesh connect" in next(finding.hint for finding in found if finding.ok is False)
