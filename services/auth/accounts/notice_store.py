"""The table of notices: emails that users may switch off. A row is written before its mail is sent."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from services.auth.store import AuthTables
from shared import features
from shared.api.notices import LimitUsed, Notice
from shared.stores.database import Transaction
from shared.types import Moment, TenantId, UserId

#: Of new accounts: registration signs in at once.
NEW_ACCOUNT_SECONDS = 600
#: Per user and hour, because a thief of a password could fill the mailbox by signing in.
MAX_SIGN_INS = 10
#: Until the second try, much longer than a delivery; doubles after each try. The last one is after 21 hours.
RETRY_SECONDS = 300.0
#: Keys per statement.
KEY_BATCH = 500


class NoticeKind(StrEnum):
    """Features have their own."""

    SIGN_IN = "sign_in"
    KEY_EXPIRES = "key_expires"
    KEY_ENDS = "key_ends"
    LIMIT = "limit"
    PAYMENT = "payment"
    PLAN = "plan"


#: How many days before its end a key is announced.
KEY_DAYS = {NoticeKind.KEY_EXPIRES: 7, NoticeKind.KEY_ENDS: 1}


class SignIn(msgspec.Struct, frozen=True):
    at: Moment
    address: str
    agent: str


class ExpiringKey(msgspec.Struct, frozen=True):
    name: str
    preview: str
    expires_at: Moment


class PlanChanged(msgspec.Struct, frozen=True, tag_field="kind", tag="plan"):
    before: str
    after: str


Fact = Notice | PlanChanged


class AboutAccount(msgspec.Struct, frozen=True):
    fact: Fact
    currency: str
    #: None if the account is the user's own.
    organization: str | None
    #: The name of the key that it is about.
    key: str | None


@dataclass(frozen=True, slots=True)
class DueNotice:
    user_id: UserId
    kind: str
    subject: str
    #: JSON, by kind.
    details: str
    #: Including the one to come.
    tries: int
    username: str
    email: str
    #: False if the account was closed or the user switched mails off since.
    is_wanted: bool


def _known_kinds() -> list[str]:
    return [*NoticeKind, *(kind.__struct_config__.tag for part in features.modules("notices") for kind in part.NOTICES)]


class NoticeStore(AuthTables):
    """Every method may raise Unavailable."""

    async def add_sign_in(self, transaction: Transaction, user_id: UserId, subject: str, sign_in: SignIn) -> None:
        details = msgspec.json.encode(sign_in).decode()
        await transaction.run("add_sign_in_notice", user_id, subject, details, NEW_ACCOUNT_SECONDS, MAX_SIGN_INS)

    async def add_about_account(self, transaction: Transaction, owner: TenantId, subject: str, fact: Fact, currency: str = "") -> None:
        """The same subject again adds nothing."""
        kind, key = fact.__struct_config__.tag, fact.key if isinstance(fact, LimitUsed) else None
        await transaction.run("add_account_notice", owner, kind, subject, msgspec.json.encode(fact).decode(), currency, key)

    async def add_expiring_keys(self, kind: NoticeKind) -> int:
        """Return how many keys were searched, at most KEY_BATCH. Each is searched once for each kind, by one replica."""
        return int(await self._db.value("add_key_notices", KEY_DAYS[kind], KEY_BATCH, kind))

    async def take(self) -> DueNotice | None:
        """Return a notice that no other replica has. It is due again later, unless ``end`` is called."""
        # Not the kinds of a later release, whose replicas may run beside this one.
        row = await self._db.row("take_notice", RETRY_SECONDS, _known_kinds())
        if row is None:
            return None
        return DueNotice(
            UserId(row["user_id"]), row["kind"], row["subject"], row["details"], row["tries"], row["username"], row["email"],
            row["is_wanted"],
        )  # fmt: skip

    async def end(self, notice: DueNotice, *, is_sent: bool) -> None:
        await self._db.run("end_notice", notice.user_id, notice.kind, notice.subject, is_sent)
