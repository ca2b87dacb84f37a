"""Files of the export that are not rows of auth's own tables: sessions, and what the audit log has of a person."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

import msgspec

from services.auth.audit.audit_store import AuditQuery
from services.auth.privacy.export import ExportSource
from services.auth.sessions.session_store import StoredSession
from shared.api.audit import AuditRow
from shared.types import UserId

_PAGE = 500


class SessionList(Protocol):
    async def list_of(self, user_id: UserId) -> tuple[StoredSession, ...]:
        """Those that are open. Raises Unavailable."""
        ...


class AuditList(Protocol):
    async def list_rows(self, asked: AuditQuery, limit: int) -> tuple[AuditRow, ...]:
        """The newest first, and all that share the time of the last one. Raises Unavailable."""
        ...


def sessions(open_sessions: SessionList) -> ExportSource:
    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        for session in await open_sessions.list_of(user_id):
            yield session.shown(None)

    return ExportSource("sessions.json", "Your logins that are open now, and from where; older ones are kept nowhere.", rows)


def audit(log: AuditList) -> ExportSource:
    async def rows(user_id: UserId) -> AsyncIterator[msgspec.Struct | msgspec.Raw]:
        before: datetime | None = None
        while page := await log.list_rows(AuditQuery(actor=user_id, before=before), _PAGE):
            for row in page:
                yield row
            before = page[-1].act.at

    return ExportSource(
        "audit.json", "What you did that is recorded for safety; addresses and details of it are kept for a time only.", rows
    )
