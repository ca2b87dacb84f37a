"""What the gateway remembers of credentials that auth has recognised, and for how long that is believed. Pure.

An entry is good for 60 s while auth tells us of changes, for 5 s without that, and for 5 min where auth cannot be asked.
"""

from collections import OrderedDict
from dataclasses import dataclass

from shared.api.auth import Change, Principal
from shared.types import UserId

WATCHED_SECONDS = 60.0
UNWATCHED_SECONDS = 5.0
#: Where auth cannot be reached: better an answer of five minutes ago than no service.
STRANDED_SECONDS = 300.0
#: The entries that were not used for longest go first.
MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal
    asked_at: float
    #: When the credential itself ends; infinite for a key.
    ends_at: float


class CallerCache:
    """Keys are digests of credentials; no credential is kept."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._watched = False
        #: Grows with every change; an answer that was asked for before a change is not remembered after it.
        self.changes = 0
        #: The last change seen, to go on from after a broken stream; 0 before the first.
        self.sequence = 0

    def find(self, digest: bytes, now: float) -> Principal | None:
        """Good to use without asking."""
        return self._find(digest, now, WATCHED_SECONDS if self._watched else UNWATCHED_SECONDS)

    def find_stranded(self, digest: bytes, now: float) -> Principal | None:
        """Good to use when auth cannot be asked."""
        return self._find(digest, now, STRANDED_SECONDS)

    def remember(self, digest: bytes, principal: Principal, *, now: float, ends_at: float, asked_at_change: int) -> None:
        if asked_at_change != self.changes:
            return
        self._entries[digest] = _Entry(principal, now, ends_at)
        self._entries.move_to_end(digest)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        self._entries.pop(digest, None)

    def watch_began(self) -> None:
        """The stream is live. If it is the first, what changed before it is unknown."""
        if self.sequence == 0:
            self._forget_user(None)
        self._watched = True

    def watch_ended(self) -> None:
        self._watched = False

    def apply(self, change: Change) -> None:
        self.sequence = max(self.sequence, change.sequence)
        self._forget_user(change.user_id)

    def _find(self, digest: bytes, now: float, good_for: float) -> Principal | None:
        entry = self._entries.get(digest)
        if entry is None or now >= min(entry.asked_at + good_for, entry.ends_at):
            return None
        self._entries.move_to_end(digest)
        return entry.principal

    def _forget_user(self, user_id: UserId | None) -> None:
        self.changes += 1
        if user_id is None:
            self._entries.clear()
            return
        for digest in [digest for digest, entry in self._entries.items() if entry.principal.user_id == user_id]:
            del self._entries[digest]
