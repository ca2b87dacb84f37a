"""Get a node's certificate over NATS, as a newcomer: with a ticket, or to replace one that has expired."""

import socket
from pathlib import Path

import msgspec

from shared import errors
from shared.identity import node_keys, tickets
from shared.node import enrollment, membership_file
from shared.node.enrollment import EnrollingNode, EnrollmentOptions
from shared.node.membership_file import MembershipFile
from shared.node.settings import NodeSettings
from shared.telemetry import logs
from shared.transports.link import LocalNode

_MAX_TICKET_BYTES = 64 * 1024
_log = logs.get(part="membership")


async def join(me: LocalNode, ticket_file: Path, settings: NodeSettings) -> MembershipFile:
    """Raises BadTicket, BadSettings and what ``enrollment.enroll`` raises."""
    ticket = _read_ticket(ticket_file)
    ticket = msgspec.structs.replace(ticket, nats=(settings.nats_url,))
    options = EnrollmentOptions(nats_files=settings.nats_files, software=me.software)
    joined = await enrollment.enroll(ticket, me.key, EnrollingNode(socket.gethostname()), _report, options)
    if joined.role is not me.role:
        raise errors.BadTicket(
            f"the ticket in JOIN_TICKET_FILE is for a {joined.role}, not for a {me.role}",
            hint=f"aicli admin tickets create --role {me.role}; and delete {settings.node_key_file}, which has joined now",
        )
    return membership_file.of(joined)


async def renew(membership: MembershipFile, key: node_keys.NodeKey, settings: NodeSettings) -> MembershipFile:
    """Raises what ``enrollment.enroll`` raises."""
    options = EnrollmentOptions(nats_files=settings.nats_files, approval_seconds=0)
    over_nats = msgspec.structs.replace(membership, nats=(settings.nats_url,))
    return await enrollment.renew_as_newcomer(over_nats, key, _report, options=options)


def _read_ticket(path: Path) -> tickets.Ticket:
    try:
        if path.stat().st_mode & 0o077:
            raise errors.BadSettings(f"JOIN_TICKET_FILE: {path} can be read by others", hint=f"chmod 600 {path}")
        with path.open("rb") as file:
            return tickets.parse(file.read(_MAX_TICKET_BYTES).decode(errors="replace"))
    except OSError as error:
        raise errors.BadSettings(f"JOIN_TICKET_FILE: {path} cannot be read: {error.strerror}") from error


def _report(text: str) -> None:
    _log.info("joining", progress=text)
