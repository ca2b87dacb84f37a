"""auth: one's own data, out and away; and what an administrator should look at from time to time."""

from datetime import datetime

from shared.api.auth import PEOPLE
from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.types import NodeId


class ExportAccount(Body, frozen=True):
    """Everything that auth keeps of the person of the call's credential; web adds what the gateway keeps."""


class ExportedFile(Body, frozen=True):
    """A file of the export, or a piece of it: pieces of one file come one after the other."""

    name: str
    content: bytes


class RequestErasure(Body, frozen=True):
    """In 30 days all that says who somebody was is deleted; the sums of the ledger stay. Logging in calls it off."""


class Erasure(Body, frozen=True):
    erased_at: datetime


class CancelErasure(Body, frozen=True):
    pass


class ReviewAccess(Body, frozen=True):
    """What was not used for so many days."""

    days: int = 90


class StaleKey(Body, frozen=True, omit_defaults=False):
    id: str
    name: str
    owner: str
    kind: str
    created_at: datetime
    last_used_at: datetime | None
    #: Why it is listed: never used, not used since, never expires, its owner is closed …
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
