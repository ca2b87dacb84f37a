"""RPC method to export everything that auth stores about a user as JSON files. Never exports secrets or their hashes."""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec

from services.auth import audit_records
from services.auth.audit.audit_store import AuditQuery
from services.auth.dependencies import Dependencies
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.sessions.session_store import StoredSession
from shared.api import privacy
from shared.api.audit import AuditRow
from shared.api.method import Nothing
from shared.rpc import StreamCall, serves
from shared.types import TenantId, UserId

#: Per message; the limit of the wire is higher.
_PIECE_BYTES = 65_536

#: The description of each file of auth's own tables.
_DESCRIPTIONS = {
    "account.json": "Your account: name, address, role, tier.",
    "preferences.json": "Your preferences from the settings page, if you have set any.",
    "keys.json": "Your API keys, including ended ones. Their secrets are not stored.",
    "organisations.json": "The organizations that you are a member of.",
    "invitations.json": "Invitations to organizations, sent to you and by you.",
    "logins-at-providers.json": "Logins at providers that open your account.",
    "nodes.json": "Machines that you added to the mesh.",
    "tickets.json": "Tickets with which machines can join in your name.",
}

Rows = Callable[[UserId], AsyncIterator[msgspec.Struct | msgspec.Raw]]


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A file of the export from another part of auth: name, description, and one user's rows."""

    name: str
    description: str
    rows: Rows


class Exports:
    """The export depends on the user's id only, not on the tenant that they act for."""

    def __init__(self, parts: Dependencies, rows: PrivacyStore, others: tuple[ExportSource, ...] = ()) -> None:
        """``others``: sessions and the audit log."""
        self._store = parts.store
        self._trail = parts.trail
        self._sources = (*(_own(rows, name, query) for name, query in rows.exported.items()), *others)

    @serves(privacy.export_account)
    async def export_account(self, request: privacy.ExportAccount, stream: StreamCall[privacy.ExportedFile]) -> Nothing:
        caller = stream.principal
        async with self._store.transaction() as transaction:
            act = audit_records.done("account.export", caller, tenant=TenantId(caller.user_id), target=caller.user_id)
            await self._trail.add(transaction, act)
        await _send(stream, "README.txt", [read_me(self._sources).encode()])
        for source in self._sources:
            pieces = bytearray()
            async for chunk in _array(source.rows(caller.user_id)):
                pieces += chunk
                while len(pieces) >= _PIECE_BYTES:
                    await stream.send(privacy.ExportedFile(source.name, bytes(pieces[:_PIECE_BYTES])))
                    del pieces[:_PIECE_BYTES]
            await stream.send(privacy.ExportedFile(source.name, bytes(pieces)))
        return Nothing()


def read_me(sources: Iterable[ExportSource]) -> str:
    files = "\n".join(f"{source.name}\n    {source.description}" for source in sources)
    return (
        "This is what the accounts of this mesh store about you, and nothing about anyone else.\n\n"
        f"{files}\n\n"
        "Each file is a list in JSON; times are UTC. Prompts and answers are not stored.\n"
        "Your usage and payments are in the gateway's files, if any are beside this one.\n"
    )


async def _send(stream: StreamCall[privacy.ExportedFile], name: str, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        await stream.send(privacy.ExportedFile(name, piece))


async def _array(rows: AsyncIterator[msgspec.Struct | msgspec.Raw]) -> AsyncIterator[bytes]:
    before = b"[\n"
    async for row in rows:
        yield before + msgspec.json.format(msgspec.json.encode(row), indent=2)
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def _own(store: PrivacyStore, name: str, query: str) -> ExportSource:
    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        for row in await store.rows_of(query, user_id):
            yield row

    return ExportSource(name, _DESCRIPTIONS[name], rows)


_PAGE = 500


class SessionList(Protocol):
    async def list_of(self, user_id: UserId) -> tuple[StoredSession, ...]:
        """Return the open sessions. Raises Unavailable."""
        ...


class AuditList(Protocol):
    async def list_rows(self, query: AuditQuery, limit: int) -> tuple[AuditRow, ...]:
        """Return the newest rows, and all that share the time of the last one. Raises Unavailable."""
        ...


def sessions(open_sessions: SessionList) -> ExportSource:
    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        for session in await open_sessions.list_of(user_id):
            yield session.shown(None)

    return ExportSource("sessions.json", "Your open logins and their addresses; older ones are not stored.", rows)


def audit(log: AuditList) -> ExportSource:
    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        before: datetime | None = None
        while page := await log.list_rows(AuditQuery(actor=user_id, before=before), _PAGE):
            for row in page:
                yield row
            before = page[-1].act.at

    return ExportSource("audit.json", "Your actions in the audit log; their addresses and details are stored for a limited time.", rows)
