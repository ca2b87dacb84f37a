"""Save the known workers for the next leader, so that one that disappeared during a restart is missed."""

from datetime import UTC, datetime
from typing import Final

import msgspec

from services.metrics import leader_state
from services.metrics.collection.worker_attendance import AttendedWorker, WorkerAttendance
from services.metrics.leader_state import Database, Leadership, State

#: Older knowledge is of no use.
_OUTAGE_SECONDS: Final = 3600.0
_SAVE_SECONDS: Final = 60.0


class AttendanceDuty:
    """A duty of the leader. Every replica recalls the workers once."""

    def __init__(self, attendance: WorkerAttendance) -> None:
        self._attendance = attendance
        self._has_recalled = False
        self._saved: list[AttendedWorker] | None = None
        self._saved_at = 0.0

    async def round(self, session: Leadership | None, database: Database | None, *, leads: bool) -> None:
        now = datetime.now(UTC)
        seconds = now.timestamp()
        if database is not None and not self._has_recalled:
            members = await leader_state.read(database, State.WORKERS, seconds - _OUTAGE_SECONDS)
            if members is not None:
                self._attendance.recall(msgspec.json.decode(members, type=list[AttendedWorker]), now)
            self._has_recalled = True
        found = list(self._attendance.members().values())
        if leads and session is not None and (found != self._saved or seconds - self._saved_at >= _SAVE_SECONDS):
            await leader_state.write(session, State.WORKERS, msgspec.json.encode(found), seconds)
            self._saved, self._saved_at = found, seconds
