"""auth's tables nodes, tickets, mesh_state and gateway_release. Every method may raise Unavailable."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from services.auth.nodes.ca_keys import MeshState
from services.auth.nodes.enrollment_rules import MAX_SIBLINGS, KnownNode, KnownTicket
from services.auth.store import AuthTables
from shared import errors
from shared.api.accounts import StaleNode
from shared.api.membership import MemberState
from shared.identity import certificates
from shared.identity.enrollment_list import EnrolledTicket
from shared.stores import database
from shared.types import NodeId, Role, TenantId, UserId, UserRole

#: The newest come first.
MAX_ROWS = 1000
#: Shorter prefixes of an id match by chance.
MIN_BEGINNING = 4
#: Announces that the revocation list may have changed.
CHANGES = "auth_mesh"
#: In the table, for a ticket with any number of uses.
_UNLIMITED = 2_147_483_647
_LISTED = timedelta(seconds=certificates.LISTED_SECONDS)


class _NothingDoneError(Exception):
    """Rolls a transaction back; never leaves this file."""


class NodeStore(AuthTables):
    """Reads are limited to one owner, or cover all for None. Writes take a transaction, so that an act and its row in the audit log are
    committed together."""

    async def read_gateway_release(self) -> str:
        found: str = await self._db.value("read_gateway_release")
        return found

    async def write_gateway_release(self, needed: str) -> None:
        await self._db.run("write_gateway_release", needed)

    async def add_ticket(self, transaction: database.Transaction, ticket: KnownTicket) -> None:
        labels = _json(ticket.labels)
        await transaction.run(
            "add_ticket", ticket.id, ticket.public_key, ticket.role, ticket.owner, labels, ticket.needs_approval,
            _UNLIMITED if ticket.uses is None else ticket.uses, ticket.expires_at, ticket.active_most, list(ticket.networks),
            ticket.model, ticket.accept_models,
        )  # fmt: skip

    async def add_listed_tickets(self, listed: Sequence[EnrolledTicket]) -> None:
        """Add the tickets of ``enrollment.json`` that have no row yet: a revoked one stays revoked."""
        for each in listed:
            await self._db.run(
                "add_listed_ticket", each.id, each.public_key, each.role, _UNLIMITED, each.expires_at, each.active_most, list(each.networks)
            )

    async def find_ticket(self, ticket_id: str) -> KnownTicket | None:
        if not ticket_id.isalnum():
            return None
        rows = await self._db.rows("list_tickets_called", ticket_id, None)
        return next((_ticket(row) for row in rows if row["id"] == ticket_id), None)

    async def note_ticket_network(self, ticket_id: str, network: str) -> bool:
        """Return whether the ticket was used before, but never from this network."""
        return bool(await self._db.value("note_ticket_network", ticket_id, network))

    async def get_ticket_called(self, beginning: str, owner: UserId | None) -> KnownTicket:
        """Find by id or by a unique prefix. Raises NotFound, and BadRequest for an ambiguous prefix."""
        rows = await self._db.rows("list_tickets_called", _checked(beginning, "ticket"), owner)
        return _ticket(_one(rows, "ticket", "`aicli admin tickets list` shows them"))

    async def list_tickets(self, owner: UserId | None) -> tuple[KnownTicket, ...]:
        return tuple(_ticket(row) for row in await self._db.rows("list_tickets", MAX_ROWS, owner))

    async def count_good_tickets(self, owner: UserId) -> int:
        return int(await self._db.value("count_good_tickets", owner))

    async def revoke_ticket(self, transaction: database.Transaction, ticket_id: str) -> bool:
        """Return False if it was revoked before."""
        return bool(await transaction.run("revoke_ticket", ticket_id))

    async def use_ticket(
        self,
        ticket_id: str,
        node: NodeId,
        *,
        name: str,
        labels: Mapping[str, str],
        now: datetime,
        also: Callable[[database.Transaction], Awaitable[None]] | None = None,
    ) -> bool:
        """Admit the node (or let it wait for approval) and count the use, or do neither if the ticket or the node is not acceptable, or the
        node has used this ticket before. Safe for concurrent nodes and replicas. ``also`` runs in the same transaction if the ticket is
        used."""
        with contextlib.suppress(_NothingDoneError):
            async with self._db.transaction() as transaction:
                await transaction.row("lock_ticket", ticket_id)
                if await transaction.row("use_ticket", ticket_id, node, name, _json(labels), now) is None:
                    raise _NothingDoneError
                if also is not None:
                    await also(transaction)
                return True
        return False

    async def add_sibling(self, transaction: database.Transaction, machine: NodeId, node: NodeId, name: str) -> bool:
        """Return False if the machine may not have this node."""
        return await transaction.row("add_sibling", machine, node, name, MAX_SIBLINGS) is not None

    async def find_node(self, node: NodeId) -> KnownNode | None:
        rows = await self._db.rows("list_nodes_called", node, None)
        return next((_node(row) for row in rows if row["id"] == node), None)

    async def get_node_called(self, beginning: str, owner: UserId | None) -> KnownNode:
        """Find by id or by a unique prefix. Raises NotFound, and BadRequest for an ambiguous prefix."""
        rows = await self._db.rows("list_nodes_called", _checked(beginning, "node"), owner)
        return _node(_one(rows, "node", "`aicli admin nodes list` shows them"))

    async def list_nodes(self, owner: UserId | None) -> tuple[KnownNode, ...]:
        return tuple(_node(row) for row in await self._db.rows("list_nodes", MAX_ROWS, owner))

    async def list_idle_nodes(self, days: int) -> tuple[StaleNode, ...]:
        return tuple(_stale_node(row, days) for row in await self._db.rows("list_idle_nodes", days, MAX_ROWS))

    async def end_ticket_soon(self, transaction: database.Transaction, ticket_id: str, after: timedelta) -> None:
        await transaction.run("end_ticket_soon", ticket_id, after)

    async def revoke_nodes_of(self, transaction: database.Transaction, ticket_id: str) -> dict[NodeId, Role]:
        """Revoke every node that joined with a ticket. Return those that were not revoked before."""
        rows = await transaction.rows("revoke_nodes_of_ticket", ticket_id, f"its ticket {ticket_id} was revoked")
        return {NodeId(row["id"]): Role(row["role"]) for row in rows}

    async def note_heard(self, nodes: Sequence[NodeId]) -> None:
        await self._db.run("note_heard", list(nodes))

    async def note_left(self, node: NodeId) -> None:
        await self._db.run("note_left", node)

    async def forget_left_nodes(self) -> None:
        await self._db.run("forget_left_nodes")

    async def list_known(self, most: int) -> list[NodeId]:
        """Return up to so many nodes that are not revoked."""
        return [NodeId(row["id"]) for row in await self._db.rows("list_known_nodes", most)]

    async def find_revoked(self, nodes: Sequence[NodeId]) -> frozenset[NodeId]:
        """Return which of these were revoked, at any time."""
        return frozenset(NodeId(row["id"]) for row in await self._db.rows("find_revoked_nodes", list(nodes)))

    async def find_owner(self, owner: UserId) -> tuple[UserRole, tuple[TenantId, ...]] | None:
        """Return the role and the organizations of a user; None if the account is closed or gone."""
        row = await self._db.row("find_node_owner", owner)
        return None if row is None else (UserRole(row["role"]), tuple(row["organisations"]))

    async def ensure_vouched(self, node: NodeId, role: Role) -> None:
        """Make a node active that NATS has authenticated. A revoked one stays revoked."""
        await self._db.run("add_vouched_node", node, role)

    async def note_certified(self, node: NodeId, until: datetime) -> bool:
        """Return False if the node is no longer active and must not have the certificate."""
        return bool(await self._db.run("note_certified", node, until))

    async def approve(self, transaction: database.Transaction, node: NodeId) -> bool:
        """Return whether it was waiting."""
        return bool(await transaction.run("approve_node", node))

    async def revoke(self, transaction: database.Transaction, node: NodeId, reason: str) -> bool:
        """Return False if it was revoked before."""
        return bool(await transaction.run("revoke_node", node, reason))

    async def read_state(self, now: datetime) -> MeshState:
        row = await self._db.row("read_mesh_state", now - _LISTED, certificates.MAX_LISTED)
        assert row is not None  # the migration made it
        return MeshState(row["number"], row["epoch"], row["epoch_changed_at"], tuple(NodeId(node) for node in row["revoked"]))

    async def raise_number(self, seen: int) -> None:
        """Raise the list's number to a published one, unless it is as high."""
        await self._db.run("raise_list_number", seen)

    async def raise_list(self, number: int, epoch: int) -> None:
        """Raise number and epoch of the revocation list above these."""
        await self._db.run("raise_list", number, epoch)

    async def rotate_epoch(self) -> None:
        """Begin the epoch that is due because a revocation followed another one within an hour."""
        await self._db.run("rotate_epoch")


def _checked(beginning: str, what: str) -> str:
    beginning = beginning.strip()
    if len(beginning) < MIN_BEGINNING or not beginning.isalnum():
        raise errors.BadRequest.of("id", f"give the {what}'s id, or at least its first {MIN_BEGINNING} characters")
    return beginning


def _one(rows: list[database.DatabaseRow], what: str, hint: str) -> database.DatabaseRow:
    if not rows:
        raise errors.NotFound(f"no {what} has an id that begins like this", hint=hint)
    if len(rows) > 1:
        raise errors.BadRequest(f"several {what}s have ids that begin like this", hint="give more characters")
    return rows[0]


def _ticket(row: database.DatabaseRow) -> KnownTicket:
    return KnownTicket(
        id=row["id"],
        public_key=NodeId(row["public_key"]),
        role=Role(row["role"]),
        owner=None if row["owner"] is None else UserId(row["owner"]),
        owner_name=row["owner_name"],
        labels=_labels(row["labels"]),
        needs_approval=row["needs_approval"],
        uses=None if row["uses"] == _UNLIMITED else row["uses"],
        used=row["used"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        active_most=row["active_most"],
        active=row["active"],
        networks=tuple(row["networks"]),
        model=row["model"],
        accept_models=row["accept_models"],
    )


def _node(row: database.DatabaseRow) -> KnownNode:
    return KnownNode(
        id=NodeId(row["id"]),
        role=Role(row["role"]),
        state=MemberState(row["state"]),
        name=row["name"],
        owner=None if row["owner"] is None else UserId(row["owner"]),
        owner_name=row["owner_name"],
        labels=_labels(row["labels"]),
        ticket_id=row["ticket_id"],
        joined_at=row["joined_at"],
        idle_since=row["idle_since"],
        renewed_at=row["renewed_at"],
        certified_until=row["certified_until"],
        revoked_at=row["revoked_at"],
        reason=row["reason"],
        machine=None if row["machine"] is None else NodeId(row["machine"]),
    )


def _stale_node(row: database.DatabaseRow, days: int) -> StaleNode:
    waits = row["state"] == MemberState.PENDING
    return StaleNode(
        id=NodeId(row["id"]),
        name=row["name"],
        role=row["role"],
        owner=row["owner_name"],
        last_seen_at=row["idle_since"],
        why=f"waiting for approval for {days} days" if waits else f"silent for {days} days",
    )


# asyncpg handles jsonb as text.
def _json(labels: Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(labels)).decode()


def _labels(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])
