"""The checks of `aicli doctor`: from the profile on disk over NATS or Hyperswarm, auth and gateway to the workers and models.

If a check fails, checks that depend on it are listed as not checked, so that users fix the first problem first.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cli import profile
from cli.cli_context import CliContext
from cli.connection import CliConnection
from cli.doctor.findings import DoctorFinding, unchecked, wrong
from cli.output import printing
from cli.profile import Profile
from shared import addresses, errors, features
from shared.api import auth, deferral, gateway, servers
from shared.identity import credentials
from shared.types import Role

if TYPE_CHECKING:
    from shared.identity.node_keys import NodeKey
    from shared.node.membership_file import MembershipFile

#: A slower step counts as broken.
_STEP_SECONDS = 5.0
#: PostgreSQL stops when its disk is full, and useful models are larger than this.
_LOW_DISK_BYTES = 1024**3


#: Checks the path into a mesh that was joined with a ticket.
ExamineSwarm = Callable[["MembershipFile", "NodeKey"], AsyncIterator[DoctorFinding]]
#: The last step of each path to the mesh.
_LEADS_IN = ("NATS", "way in")
_REST = ("auth", "gateway", "workers", "models")


async def examine(here: CliContext, examine_swarm: ExamineSwarm | None = None) -> list[DoctorFinding]:
    """Run all checks in the order of a request's path. Does not raise for problems it finds."""
    findings: list[DoctorFinding] = []
    try:
        place = profile.find(here.environment, here.folder)
        chosen = profile.load(here.environment, here.folder)
    except errors.BadSettings as error:
        findings.append(wrong("profile", error))
        return [*findings, *unchecked("profile", "node key", "API key", "NATS", *_REST)]
    target = chosen.url or f"mesh {chosen.mesh}"
    findings.append(DoctorFinding("profile", True, f"{place.path} ({place.why}), {target}" if place.path else f"{target} ({place.why})"))
    if place.path is not None:
        findings.append(_check_disk(place.path.parent))
    if chosen.node_key_file is not None:
        findings.append(_check_node_key(chosen.node_key_file))
    findings.append(_check_form_of_key(chosen))
    way = [] if chosen.url else await _examine_way(chosen, examine_swarm)
    findings += way
    if chosen.url or any(finding.ok and finding.check in _LEADS_IN for finding in way):
        findings += await _examine_mesh(here, chosen)
    else:
        findings += unchecked(next(finding.check for finding in way if not finding.ok), *_REST)
    return findings


async def _examine_way(chosen: Profile, examine_swarm: ExamineSwarm | None) -> list[DoctorFinding]:
    """Check Hyperswarm if the profile was created with a ticket, else NATS."""
    if chosen.mesh_file is None:
        return [await _check_nats(chosen.nats_url or "")]
    from cli.doctor import doctor_worker_checks
    from shared.identity import node_keys
    from shared.node import membership_file

    try:
        kept = membership_file.load(chosen.mesh_file)
        if kept is None:
            return [
                DoctorFinding("membership", False, f"there is no {chosen.mesh_file}", "recreate the profile: aicli mesh connect TICKET")
            ]
        key = node_keys.load(chosen.node_key)
    except errors.AimeshError as error:
        return [wrong("membership", error)]
    return [finding async for finding in (examine_swarm or doctor_worker_checks.examine)(kept, key)]


def _check_disk(folder: Path) -> DoctorFinding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 1024**3:.1f} GiB free at {folder}"
    return (
        DoctorFinding("disk", True, text)
        if free >= _LOW_DISK_BYTES
        else DoctorFinding("disk", False, text, "free some disk space: less than 1 GiB is left")
    )


def _check_node_key(file: Path) -> DoctorFinding:
    from shared.identity import node_keys

    try:
        return DoctorFinding("node key", True, f"{file}: {node_keys.load(file).id[:9]}…")
    except errors.AimeshError as error:
        return wrong("node key", error)


def _check_form_of_key(chosen: Profile) -> DoctorFinding:
    if chosen.api_key is None:
        return DoctorFinding("API key", False, "the profile has no key", "aicli login, or set AICLI_API_KEY")
    if not credentials.looks_like_api_key(chosen.api_key):
        return DoctorFinding("API key", False, "invalid checksum: the key is incomplete", "aicli login, or copy the key again")
    return DoctorFinding("API key", True, f"well formed{f', owner {chosen.username}' if chosen.username else ''}")


async def _check_nats(urls: str) -> DoctorFinding:
    """Succeed if one server answers. Findings show only host and port, because an address can contain a password."""
    findings = [await _check_server(url.strip()) for url in urls.split(",")]
    return next((finding for finding in findings if finding.ok), findings[0])


async def _check_server(url: str) -> DoctorFinding:
    """Check that NATS listens there: its server speaks first, with INFO."""
    hint = "start it with `make up`, or fix nats_url in the profile"
    parts = urlsplit(url)  # load_profile has checked these addresses
    host, port = parts.hostname or "127.0.0.1", parts.port or 4222
    where = addresses.host_port(host, port)
    try:
        async with asyncio.timeout(_STEP_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                greeting = await reader.read(5)
            finally:
                writer.close()
    except TimeoutError:
        return DoctorFinding("NATS", False, f"no answer at {where}", hint)
    except ConnectionRefusedError:
        return DoctorFinding("NATS", False, f"nothing listens at {where}", hint)
    except OSError as error:
        return DoctorFinding("NATS", False, f"cannot connect to {where}: {error.strerror or error}", hint)
    if greeting != b"INFO ":
        return DoctorFinding("NATS", False, f"the server at {where} is not NATS", hint)
    return DoctorFinding("NATS", True, f"listens at {where}")


async def _examine_mesh(here: CliContext, chosen: Profile) -> list[DoctorFinding]:
    findings: list[DoctorFinding] = []
    try:
        async with here.connector()(chosen) as connection:
            await _examine_services(connection, chosen, findings)
    except errors.AimeshError as error:
        findings.append(wrong("mesh", error))
        if len(findings) == 1:
            findings += unchecked("mesh", *_REST)
    return findings


async def _examine_services(connection: CliConnection, chosen: Profile, findings: list[DoctorFinding]) -> None:
    """Append to ``findings`` step by step, so that they remain if the connection breaks."""
    findings.append(await _check_auth(connection, chosen))
    try:
        health = await connection.call(gateway.get_service_health, gateway.GetServiceHealth(), deadline_seconds=_STEP_SECONDS)
    except errors.AimeshError as error:
        findings += [wrong("gateway", error), *unchecked("gateway", "workers", "models")]
        return
    findings.append(DoctorFinding("gateway", True, f"alive, {printing.counted(health.in_flight, 'request')} in flight"))
    hint = "see aicli stack status and aicli stack logs gateway"
    findings += [DoctorFinding(check.name, False, check.detail, hint) for check in health.checks if not check.ok]
    findings.append(await _check_quota(connection, chosen))
    try:
        nodes = (await connection.call(gateway.list_nodes, gateway.ListNodes(), deadline_seconds=_STEP_SECONDS)).nodes
        about_nodes = list(_check_nodes(nodes))
    except errors.AimeshError as error:
        nodes, about_nodes = (), [_logged_out("nodes") if chosen.api_key is None else wrong("nodes", error)]
    findings += [*_check_workers(health, nodes), *about_nodes]
    for of_feature in features.modules("cli.doctor"):
        findings += await of_feature.check(connection)
    findings += await _check_deferred(connection)


async def _check_auth(connection: CliConnection, chosen: Profile) -> DoctorFinding:
    """Check that auth answers; even a refusal shows that it is up."""
    if chosen.api_key is None:
        alive = chosen.url is None and bool(connection.alive(Role.AUTH))
        return DoctorFinding("auth", True, "alive") if alive else DoctorFinding("auth", None, "not seen yet; log in to query it")
    try:
        listed = await connection.call(auth.list_api_keys, auth.ListApiKeys(), deadline_seconds=_STEP_SECONDS)
    except errors.NotAuthenticated as error:
        return DoctorFinding("auth", False, f"up, but it rejects the key: {error.message}", error.hint or "aicli login")
    except errors.NotAllowed:
        return DoctorFinding("auth", True, "OK; it accepts the key, which has no permission to list keys")
    except errors.AimeshError as error:
        return wrong("auth", error)
    active = printing.counted(sum(key.is_active for key in listed.keys), "key is", "keys are")
    return DoctorFinding("auth", True, f"OK; it accepts the key; {active} active")


async def _check_deferred(connection: CliConnection) -> list[DoctorFinding]:
    """Return nothing for those who may not know, and while nothing has failed."""
    found: list[deferral.DeferredItem] = []
    for method in (deferral.list_of_gateway, deferral.list_of_auth):
        with suppress(errors.AimeshError):
            found += (await connection.call(method, deferral.ListDeferredItems(), deadline_seconds=_STEP_SECONDS)).items
    if not found:
        return []
    kinds = ", ".join(sorted({item.kind for item in found}))
    resting = sum(item.next_at is None for item in found)
    text = f"{printing.counted(len(found), 'item')} failed ({kinds}), {resting} of them after all tries"
    return [DoctorFinding("background", False, text, "see aicli admin deferred list")]


async def _check_quota(connection: CliConnection, chosen: Profile) -> DoctorFinding:
    if chosen.api_key is None:
        return _logged_out("quota")
    try:
        left = await connection.call(gateway.get_user_quota, gateway.GetUserQuota(), deadline_seconds=_STEP_SECONDS)
    except errors.AimeshError as error:
        return wrong("quota", error)
    return _judge(left)


def _judge(left: gateway.UserQuota) -> DoctorFinding:
    account = left.account
    allowance = None if account is None else account.allowance
    if account is not None and account.free_micro == 0 and (allowance is None or allowance.left == 0):
        renewal = "" if allowance is None else f", or wait until your plan renews: {allowance.renews_at:%Y-%m-%d}"
        return DoctorFinding("quota", False, "no tokens and no credits left" if allowance else "no credits left", f"ask for more{renewal}")
    if left.limit_per_hour >= gateway.NO_LIMIT:
        return DoctorFinding("quota", True, "no hourly request limit")
    text = f"{left.remaining} of {printing.counted(left.limit_per_hour, 'request')} left this hour"
    return (
        DoctorFinding("quota", True, text)
        if left.remaining
        else DoctorFinding("quota", False, text, f"wait until {left.resets_at:%H:%M} UTC")
    )


def _logged_out(check: str) -> DoctorFinding:
    return DoctorFinding(check, None, "not checked: you are not logged in")


def _check_workers(health: gateway.ServiceHealth, nodes: Sequence[gateway.NodeRow]) -> Iterator[DoctorFinding]:
    if not health.workers:
        hint = "start one with `aicli worker`, or check `aicli stack status`"
        if any(_waits_for_servers(node) for node in nodes):
            hint = "add a server with `aicli models add-server`, or start a worker with `aicli worker`"
        yield DoctorFinding("workers", False, "no worker is ready", hint)
        yield from unchecked("workers", "models")
        return
    yield DoctorFinding("workers", True, f"{health.workers} ready")
    if health.models:
        yield DoctorFinding("models", True, ", ".join(health.models))
    else:
        yield DoctorFinding("models", False, "no worker serves a model", "start a worker with --model NAME=PATH")


def _check_nodes(nodes: Sequence[gateway.NodeRow]) -> Iterator[DoctorFinding]:
    """List nodes that are up and get no requests. `aicli nodes` also shows the missing ones."""
    hint = "list all nodes: aicli nodes"
    for node in nodes:
        label = f"{node.service} {node.id[:9]}…"
        if _waits_for_servers(node):
            yield DoctorFinding("nodes", None, f"{label}: {node.why_not}")
        elif node.alive and not node.usable:
            yield DoctorFinding("nodes", False, f"{label} gets no requests: {node.why_not}", hint)
        elif node.alive and node.trouble:
            yield DoctorFinding("nodes", False, f"{label} gets requests, but {node.trouble}", hint)
        elif node.alive and node.warning:
            yield DoctorFinding("nodes", None, f"{label}: {node.warning}")


def _waits_for_servers(node: gateway.NodeRow) -> bool:
    """Return whether it is for servers that administrators add, and has none yet."""
    return node.alive and not node.usable and node.why_not == servers.NO_SERVER
