"""auth: data export, account erasure, and access reviews."""

from datetime import datetime

from shared.api.auth import PEOPLE
from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.types import NodeId


class ExportAccount(Body, frozen=True):
    """Export everything that auth stores about the caller. web adds what the gateway stores."""


class ExportedFile(Body, frozen=True):
    """A file of the export, or a part of one. The parts of a file arrive in order."""

    name: str
    content: bytes


class RequestErasure(Body, frozen=True):
    """Delete all personal data in 30 days; the ledger's sums remain. A login cancels the erasure."""


class Erasure(Body, frozen=True):
    erased_at: datetime


class CancelErasure(Body, frozen=True):
    pass


class ReviewAccess(Body, frozen=True):
    """List what was not used for this many days."""

    days: int = 90


class StaleKey(Body, frozen=True, omit_defaults=False):
    id: str
    name: str
    owner: str
    kind: str
    created_at: datetime
    last_used_at: datetime | None
    #: Why it is listed, such as: never used, never expires, owner is closed.
    why: str


class StaleUser(Body, frozen=True, omit_defaults=False):
    username: str
    role: str
    created_at: datetime
    last_seen_at: datetime | None
    why: str


class StaleNode(Body, frozen=True, omit_defaults=False):
    id: NodeId
    name: str
    role: str
    owner: str
    last_seen_at: datetime
    why: str


class AccessReview(Body, frozen=True):
    keys: tuple[StaleKey, ...]
    users: tuple[StaleUser, ...]
    nodes: tuple[StaleNode, ...]


export_account = StreamMethod("auth.exportAccount", ExportAccount, item=ExportedFile, end=Nothing, callers=PEOPLE)
request_erasure = Method("auth.requestErasure", RequestErasure, Erasure, callers=PEOPLE)
cancel_erasure = Method("auth.cancelErasure", CancelErasure, Nothing, callers=PEOPLE)
review_access = Method("auth.reviewAccess", ReviewAccess, AccessReview, callers=PEOPLE)
