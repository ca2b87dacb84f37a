"""RPC method to export everything that auth stores about a user as JSON files. Never exports secrets or their hashes."""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from services.auth import audit_records
from services.auth.audit.audit_store import AuditQuery, AuditStore
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.sessions.session_store import SessionStore
from shared.api import accounts
from shared.api.method import Nothing
from shared.rpc import StreamCall, serves
from shared.types import TenantId, UserId

#: Per message; the limit of the wire is higher.
_PIECE_BYTES = 65_536
#: Rows of the audit log read at once.
_PAGE = 500

#: File of auth's own tables -> its query and its description.
_OWN_FILES = {
    "account.json": ("export_account", "Your account: name, address, role, tier."),
    "preferences.json": ("export_preferences", "Your preferences from the settings page, if you have set any."),
    "keys.json": ("export_keys", "Your API keys, including ended ones. Their secrets are not stored."),
    "organisations.json": ("export_organisations", "The organizations that you are a member of."),
    "invitations.json": ("export_invitations", "Invitations to organizations and to the mesh, sent to you and by you."),
    "logins-at-providers.json": ("export_links", "Logins at providers that open your account."),
    "notices.json": ("export_notices", "Emails that you may switch off, of the last 30 days."),
    "nodes.json": ("export_nodes", "Machines that you added to the mesh."),
    "tickets.json": ("export_tickets", "Tickets with which machines can join in your name."),
}

Rows = Callable[[UserId], AsyncIterator[msgspec.Struct | msgspec.Raw]]


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A file of the export from another part of auth: name, description, and one user's rows."""

    name: str
    description: str
    rows: Rows


class Exports(AuthHandlers):
    """The export depends on the user's id only, not on the tenant that they act for."""

    def __init__(self, parts: Dependencies, rows: PrivacyStore, others: tuple[ExportSource, ...] = ()) -> None:
        """``others``: sessions and the audit log."""
        super().__init__(parts)
        self._sources = (*(_own(rows, name) for name in _OWN_FILES), *others)

    @serves(accounts.export_account)
    async def export_account(self, request: accounts.ExportAccount, stream: StreamCall[accounts.ExportedFile]) -> Nothing:
        caller = stream.principal
        async with self._store.transaction() as transaction:
            act = audit_records.done("account.export", caller, tenant=TenantId(caller.user_id), target=caller.user_id)
            await self._trail.add(transaction, act)
        await stream.send(accounts.ExportedFile("README.txt", read_me(self._sources).encode()))
        for source in self._sources:
            pieces = bytearray()
            async for chunk in _array(source.rows(caller.user_id)):
                pieces += chunk
                while len(pieces) >= _PIECE_BYTES:
                    await stream.send(accounts.ExportedFile(source.name, bytes(pieces[:_PIECE_BYTES])))
                    del pieces[:_PIECE_BYTES]
            await stream.send(accounts.ExportedFile(source.name, bytes(pieces)))
        return Nothing()


def read_me(sources: Iterable[ExportSource]) -> str:
    files = "\n".join(f"{source.name}\n    {source.description}" for source in sources)
    return (
        "This is what the accounts of this mesh store about you, and nothing about anyone else.\n\n"
        f"{files}\n\n"
        "Each file is a list in JSON; times are UTC. Prompts and answers are not stored, except in files and jobs.\n"
        "Your usage, payments, jobs, files and the rest are in the gateway's files, if any are beside this one.\n"
    )


async def _array(rows: AsyncIterator[msgspec.Struct | msgspec.Raw]) -> AsyncIterator[bytes]:
    before = b"[\n"
    async for row in rows:
        yield before + msgspec.json.format(msgspec.json.encode(row), indent=2)
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def _own(store: PrivacyStore, name: str) -> ExportSource:
    query, description = _OWN_FILES[name]

    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        for row in await store.rows_of(query, user_id):
            yield row

    return ExportSource(name, description, rows)


def sessions(open_sessions: SessionStore) -> ExportSource:
    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        for session in await open_sessions.list_of(user_id):
            yield session.shown(None)

    return ExportSource("sessions.json", "Your open logins and their addresses; older ones are not stored.", rows)


def audit(log: AuditStore) -> ExportSource:
    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        before: datetime | None = None
        while page := await log.list_rows(AuditQuery(actor=user_id, before=before), _PAGE):
            for row in page:
                yield row
            before = page[-1].act.at

    return ExportSource("audit.json", "Your actions in the audit log; their addresses and details are stored for a limited time.", rows)
