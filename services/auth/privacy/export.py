"""The RPC method that hands people all that auth keeps of them, as files of JSON; never a secret, nor what stands for one."""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import msgspec

from services.auth import audit_records
from services.auth.dependencies import Dependencies
from services.auth.privacy.privacy_store import PrivacyStore
from shared.api import privacy
from shared.api.method import Nothing
from shared.rpc import StreamCall, serves
from shared.types import TenantId, UserId

#: Of a file; a frame of the wire has room for more.
_PIECE_BYTES = 65_536

#: What each file of auth's own tables is.
_SAYS = {
    "account.json": "Your account: name, address, role, tier.",
    "preferences.json": "What you set up on the settings page; empty where you never did.",
    "keys.json": "Your API keys, those that have ended included. Their secrets are kept nowhere.",
    "organisations.json": "The organisations that you are a member of.",
    "invitations.json": "Invitations into organisations, to you and by you.",
    "logins-at-providers.json": "Logins elsewhere that open your account.",
    "nodes.json": "Machines that you brought into the mesh.",
    "tickets.json": "Tickets by which machines may join in your name.",
}

Rows = Callable[[UserId], AsyncIterator[msgspec.Struct | msgspec.Raw]]


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A file of the export that another part of auth fills: what it is called, what it is, and its rows, one user's and no other's."""

    name: str
    says: str
    rows: Rows


class Exports:
    """Handlers. What a person may have is the same whoever they act for, so that it is by their id and not by their tenant."""

    def __init__(self, parts: Dependencies, rows: PrivacyStore, others: tuple[ExportSource, ...] = ()) -> None:
        """``others``: sessions, the audit log."""
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
    files = "\n".join(f"{source.name}\n    {source.says}" for source in sources)
    return (
        "This is what the accounts of this mesh keep of you, and nothing of anybody else.\n\n"
        f"{files}\n\n"
        "Each file is a list in JSON; times are UTC. Prompts and answers are kept nowhere.\n"
        "What you used and paid is in the files of the gateway, where there are any beside this one.\n"
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

    return ExportSource(name, _SAYS[name], rows)
