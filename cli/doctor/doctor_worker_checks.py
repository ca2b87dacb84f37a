"""The checks of `aicli doctor --worker` on a machine that joined with a ticket: over NATS, if the ticket names it, and from the Hyperswarm
program to auth.

The checks of Hyperswarm use a temporary key, because a running worker may be using the machine's own.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import pyhyperswarm
from pyhyperswarm import DhtStats, Swarm

from cli.doctor.findings import DoctorFinding, unchecked, wrong
from cli.output import printing
from shared import addresses, errors
from shared.identity import certificates, node_keys
from shared.identity.trust import Trust
from shared.node import enrollment, swarm_settings
from shared.node.enrollment import EnrollmentOptions, EnrollmentRoute
from shared.node.membership_file import MembershipFile
from shared.transports.swarm_link import SwarmLink
from shared.types import Role

if TYPE_CHECKING:
    from cli.machines.join import Folder

#: Each DHT node answers within a round trip; a few answers reveal the type of NAT.
_DHT_SECONDS = 10.0
#: A random punch takes up to 20 s; a peer that needs longer needs a relay.
_FIND_SECONDS = 25.0
#: A login takes less than a second, and two tries of 2 s each while auth is away.
_NATS_SECONDS = 10.0
#: Auth was found a moment ago, so this is quick.
_MEMBER_SECONDS = 8.0
_CHECKS = ("Node.js", "sidecar", "DHT", "NAT", "relay", "way in", "clock", "member")


async def examine(
    kept: MembershipFile, key: node_keys.NodeKey, *, is_in_use: bool = False, find_seconds: float = _FIND_SECONDS
) -> AsyncIterator[DoctorFinding]:
    """Run all checks in order. ``is_in_use`` means that a process on this machine uses the key: over Hyperswarm, a second one would
    disconnect it. One way into the mesh is enough."""
    yield check_certificate(kept, key, time.time())
    if not kept.nats:
        async for finding in _examine_swarm(kept, key, is_in_use=is_in_use, find_seconds=find_seconds):
            yield finding
        return
    over_nats = await _examine_nats(kept, key)
    yield over_nats
    if kept.beside:
        alone = msgspec.structs.replace(kept, nats=())
        async for finding in _examine_swarm(alone, key, is_in_use=is_in_use, find_seconds=find_seconds):
            is_needed = finding.ok is not False or not over_nats.ok
            yield finding if is_needed else msgspec.structs.replace(finding, ok=None, hint="not needed: NATS works")


async def _examine_nats(kept: MembershipFile, key: node_keys.NodeKey) -> DoctorFinding:
    """Renew the certificate over NATS, which allows another connection of a key."""
    alone, options = msgspec.structs.replace(kept, beside=False), EnrollmentOptions(find_seconds=_NATS_SECONDS, approval_seconds=0)
    where = ", ".join(enrollment.route_of(kept).servers)
    try:
        await enrollment.renew_as_newcomer(alone, key, options=options)
    except errors.ApprovalPending:
        return DoctorFinding("NATS", True, f"auth answers ({where})")
    except errors.AimeshError as error:
        return wrong("NATS", error)
    return DoctorFinding("NATS", True, f"auth renews the certificate ({where})")


async def _examine_swarm(
    kept: MembershipFile, key: node_keys.NodeKey, *, is_in_use: bool, find_seconds: float
) -> AsyncIterator[DoctorFinding]:
    try:
        yield DoctorFinding("Node.js", True, str(pyhyperswarm.find_node()))
    except pyhyperswarm.NodeMissing as error:
        yield DoctorFinding("Node.js", False, str(error), "run make setup, or set NODE_BINARY to Node.js 20 or newer")
        for finding in unchecked("Node.js", *_CHECKS[1:]):
            yield finding
        return
    last = True
    async for finding in _examine_dht(enrollment.route_of(kept)):
        last = finding.ok is not False or finding.check not in ("sidecar", "DHT")
        yield finding
    if not last:
        for finding in unchecked("DHT", *_CHECKS[-3:]):
            yield finding
        return
    leads_in = False
    async for finding in _examine_auth(enrollment.route_of(kept), find_seconds):
        leads_in = leads_in or (finding.check == "way in" and finding.ok is True)
        yield finding
    if leads_in and not is_in_use:
        yield await _examine_membership(kept, key)
    else:
        yield DoctorFinding("member", None, "not checked: " + ("a running worker uses the key" if is_in_use else "fix way in first"))


async def examine_worker(folder: "Folder") -> AsyncIterator[DoctorFinding]:
    """Check a joined worker's folder, then the path into its mesh."""
    from cli.machines import join

    try:
        kept = folder.kept()
        if kept is None:
            yield DoctorFinding("worker", False, f"no worker has joined a mesh using {folder.root}", "aicli worker --join TICKET")
            return
        key = node_keys.load(folder.key)
    except errors.AimeshError as error:
        yield wrong("worker", error)
        return
    yield DoctorFinding("worker", True, f"{folder.root}: {key.id[:9]}… of mesh {kept.mesh}")
    running = join.is_running(folder)
    yield DoctorFinding("running", running, "a worker is running" if running else "no worker is running", "" if running else "aicli worker")
    if folder.paused.exists():
        yield DoctorFinding("paused", False, "it is paused and gets no requests", "aicli worker resume")
    async for finding in examine(kept, key, is_in_use=running):
        yield finding


def check_certificate(kept: MembershipFile, key: node_keys.NodeKey, now: float) -> DoctorFinding:
    """Check whether the mesh accepts this key."""
    trust = Trust(key, kept.role, kept.authorities)
    try:
        if kept.revocations:
            trust.take_list(kept.revocations)
        trust.check_not_revoked(key.id)
        if not kept.certificate:
            return DoctorFinding(
                "certificate", False, "none yet: an administrator must approve this machine", "ask them to run aicli admin nodes approve"
            )
        found = certificates.check(kept.certificate, kept.authorities, now)
    except errors.CertificateExpired as error:
        return DoctorFinding("certificate", False, error.message, "it is renewed as soon as auth is reachable; see below")
    except errors.AimeshError as error:
        return wrong("certificate", error)
    if found.node != key.id:
        return DoctorFinding("certificate", False, "it belongs to another key", "join again with a new ticket")
    return DoctorFinding("certificate", True, f"{found.role} until {datetime.fromtimestamp(found.not_after).astimezone():%Y-%m-%d %H:%M}")


async def _examine_dht(route: EnrollmentRoute) -> AsyncIterator[DoctorFinding]:
    async with AsyncExitStack() as stack:
        try:
            nodes = route.bootstrap and (*route.bootstrap, *route.older_bootstrap)
            opened = swarm_settings.opener(node_keys.NodeKey(node_keys.new_seed()), nodes, route.relays)()
            swarm = await stack.enter_async_context(opened)
        except (pyhyperswarm.SwarmError, errors.AimeshError) as error:
            yield DoctorFinding("sidecar", False, str(error), "run make setup to install its packages")
            for finding in unchecked("sidecar", "DHT", "NAT", "relay"):
                yield finding
            return
        yield DoctorFinding("sidecar", True, "it starts")
        found = await _attached(swarm)
        yield check_dht(found, route)
        if not found.bootstrapped or not found.nodes:
            for finding in unchecked("DHT", "NAT", "relay"):
                yield finding
            return
        yield check_nat(found, route)
        yield check_relay(found, route)


async def _attached(swarm: Swarm) -> DhtStats:
    """Return as soon as the DHT answers, or what is known at the deadline."""
    deadline = time.monotonic() + _DHT_SECONDS
    while True:
        found = (await swarm.stats()).dht
        if (found.bootstrapped and found.nodes and found.host) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


def check_dht(found: DhtStats, route: EnrollmentRoute) -> DoctorFinding:
    if found.bootstrapped and found.nodes:
        return DoctorFinding("DHT", True, f"{printing.counted(found.nodes, 'node answers', 'nodes answer')} ({route.places})")
    if route.is_on_this_machine:
        hint = "these nodes are on the machine that created the ticket; its administrator must set DHT_HOST and create a new ticket"
    else:
        hint = f"{enrollment.NO_ANSWER_HINT}, or try another network, such as a phone's"
    return DoctorFinding("DHT", False, f"no DHT node answers ({route.places})", hint)


def check_nat(found: DhtStats, route: EnrollmentRoute) -> DoctorFinding:
    seen = addresses.host_port(str(found.host), found.port)
    if route.is_on_this_machine:
        return DoctorFinding("NAT", True, "none: the mesh's DHT is on this machine")
    if found.randomized:
        text = "symmetric: each peer sees a different port. Open machines are reached directly, other symmetric NATs through a relay"
        return DoctorFinding("NAT", True, text)
    if not found.firewalled:
        return DoctorFinding("NAT", True, f"none: this machine is reachable at {seen}")
    return DoctorFinding("NAT", True, f"port-preserving ({seen} from outside): direct connections work")


def check_relay(found: DhtStats, route: EnrollmentRoute) -> DoctorFinding:
    if route.relays:
        return DoctorFinding("relay", True, f"{len(route.relays)} known, used if there is no direct path")
    if found.randomized:
        hint = "run aicli mesh relay on a publicly reachable host, and set DHT_RELAYS of the stack to the key that it prints"
        return DoctorFinding("relay", False, "none, and this NAT may need one", hint)
    return DoctorFinding("relay", True, "none configured; this NAT seldom needs one")


async def _examine_auth(route: EnrollmentRoute, find_seconds: float) -> AsyncIterator[DoctorFinding]:
    """Connect as an unknown node: auth greets anyone with its certificate and the time."""
    trust = Trust(node_keys.NodeKey(node_keys.new_seed()), Role.NEWCOMER, route.authorities)
    started = time.monotonic()
    try:
        async with enrollment.open_session(route, trust, lambda text: None, EnrollmentOptions(find_seconds=find_seconds)) as session:
            link = await session.wait_for_auth()
    except errors.AimeshError as error:
        yield wrong("way in", error)
        for finding in unchecked("way in", "clock"):
            yield finding
        return
    yield DoctorFinding("way in", True, f"auth {link.peer.node[:9]}… found ({link.path}) in {time.monotonic() - started:.1f} s")
    yield check_clock(link.clock_offset_seconds if isinstance(link, SwarmLink) else 0.0)


async def _examine_membership(kept: MembershipFile, key: node_keys.NodeKey) -> DoctorFinding:
    """Check whether auth still accepts this key; it doesn't answer revoked ones."""
    try:
        await enrollment.renew_as_newcomer(kept, key, options=EnrollmentOptions(find_seconds=_MEMBER_SECONDS, approval_seconds=0))
    except errors.NotReachable:
        hint = "an administrator can check with aicli admin nodes list; to join again, use a new ticket"
        return DoctorFinding("member", False, "auth answers others, but not this machine's key: it was revoked", hint)
    except errors.AimeshError as error:
        return wrong("member", error)
    return DoctorFinding("member", True, "auth renews the certificate")


def check_clock(offset_seconds: float) -> DoctorFinding:
    """``offset_seconds`` is auth's clock minus ours."""
    if abs(offset_seconds) <= certificates.LEEWAY_SECONDS:
        return DoctorFinding("clock", True, f"within {certificates.LEEWAY_SECONDS} s of auth's")
    way = "behind" if offset_seconds > 0 else "ahead of"
    return DoctorFinding(
        "clock", False, f"{abs(offset_seconds) / 60:.0f} min {way} auth's", "set this machine's clock, for example with NTP"
    )
