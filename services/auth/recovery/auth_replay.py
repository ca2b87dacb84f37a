"""Applies lines of auth's recovery log to a restored database."""

import secrets
from collections.abc import Awaitable, Callable, Sequence

from services.auth.audit.audit_store import AuditStore
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.recovery import kinds
from shared.recovery.recovery_lines import RecoveryLine
from shared.recovery.recovery_store import RecoveryStore
from shared.recovery.replay import Replay, columns_of
from shared.stores.transactions import Transaction
from shared.types import UserId


def auth_replay(rows: RecoveryStore, own_data: PrivacyStore, audit: AuditStore, hash_password: Callable[[str], Awaitable[str]]) -> Replay:
    async def erase(transaction: Transaction, lines: Sequence[RecoveryLine]) -> None:
        for row in await transaction.rows("list_erasures_to_replay", *columns_of(lines)):
            await own_data.erase(transaction, UserId(row["id"]), secrets.token_hex(4))
            await audit.shred_of(transaction, UserId(row["id"]))

    async def change_credentials(transaction: Transaction, lines: Sequence[RecoveryLine]) -> None:
        unknown_password = await hash_password(secrets.token_urlsafe(32))
        await transaction.run("replay_user_credentials_changed", *columns_of(lines), unknown_password)

    special = {"user.erased": erase, "user.credentials_changed": change_credentials}
    return Replay(rows, kinds.KINDS, special, kinds.STEPWISE)
