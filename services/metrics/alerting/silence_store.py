"""Read and write the silences in PostgreSQL; without it, keep them in memory."""

from typing import Final

import msgspec

from services.metrics import leader_state
from services.metrics.alerting.notices import Silence
from services.metrics.leader_state import Database, DatabaseRow
from shared import errors
from shared.rpc import RpcCall

MAX_SILENCES: Final = 100


def name_of_caller(call: RpcCall) -> str:
    return "operator" if call.found is None else call.found.username


class SilenceStore:
    """``known`` are the silences as last read. The other methods can raise Unavailable."""

    def __init__(self, *, has_database: bool) -> None:
        self._has_database = has_database
        self._database: Database | None = None
        self.known: tuple[Silence, ...] = ()

    async def refresh(self, database: Database | None, now: float) -> None:
        self._database = database
        if database is not None:
            rows = await database.rows("list_silences", leader_state.moment_of(now), MAX_SILENCES)
            self.known = tuple(map(_silence, rows))
        self.known = tuple(silence for silence in self.known if silence.until > now)

    async def add(self, silence: Silence) -> None:
        if self._opened is not None:
            said = msgspec.json.encode(silence).decode()
            await self._opened.run("add_silence", silence.id, leader_state.moment_of(silence.until), said)
        self.known = (*self.known, silence)

    async def end(self, silence_id: str) -> bool:
        """Return whether it was there."""
        kept = tuple(silence for silence in self.known if silence.id != silence_id)
        is_there = len(kept) < len(self.known)
        if self._opened is not None:
            is_there = await self._opened.run("end_silence", silence_id) > 0
        self.known = kept
        return is_there

    @property
    def _opened(self) -> Database | None:
        if self._has_database and self._database is None:
            raise errors.Unavailable("PostgreSQL does not answer, which stores the silences", hint="check `aicli stack status`")
        return self._database


def _silence(row: DatabaseRow) -> Silence:
    return msgspec.structs.replace(msgspec.json.decode(row["said"], type=Silence), id=row["id"], until=row["until"].timestamp())
