"""Mails that wait to be sent: how many may, which is next, and what becomes of one that failed. Pure; the caller brings the clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.mail.letters import Letter

#: More than these are a mail server that has been away for long; each is some 2 kB.
MOST_WAITING = 100
#: After a failure that may pass; greylisting servers take a mail after a minute or two.
PAUSES_SECONDS = (5.0, 30.0, 180.0)


@dataclass(frozen=True, slots=True)
class WaitingMail:
    letter: Letter
    due_at: float
    #: Failed attempts so far.
    tries: int = 0


class MailQueue:
    def __init__(self, pauses_seconds: Sequence[float] = PAUSES_SECONDS) -> None:
        """After the last of the pauses a mail that fails again is lost."""
        self._pauses = tuple(pauses_seconds)
        self._waiting: list[WaitingMail] = []
        self.sent = 0
        #: Those that nobody will get.
        self.lost = 0
        #: Why the last attempt failed; empty when it did not.
        self.last_failure = ""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """So many more are taken."""
        return max(0, MOST_WAITING - len(self._waiting))

    def put(self, letter: Letter, now: float) -> bool:
        """False where there is no room for it, and it is lost."""
        if not self.room:
            self.lost += 1
            return False
        self._waiting.append(WaitingMail(letter, now))
        return True

    def take_due(self, now: float) -> WaitingMail | None:
        """The one that has waited longest beyond its time; it is the caller's now."""
        due = min(self._waiting, key=lambda waiting: waiting.due_at, default=None)
        if due is None or due.due_at > now:
            return None
        self._waiting.remove(due)
        return due

    def seconds_to_wait(self, now: float) -> float | None:
        """Until the next one is due; None while there is none."""
        return min((max(0.0, waiting.due_at - now) for waiting in self._waiting), default=None)

    def succeeded(self) -> None:
        self.sent += 1
        self.last_failure = ""

    def failed(self, tried: WaitingMail, now: float, *, for_good: bool, why: str) -> bool:
        """Whether it will be tried again."""
        self.last_failure = why
        if for_good or tried.tries >= len(self._pauses):
            self.lost += 1
            return False
        # Beyond the bound by at most the one that was under way.
        self._waiting.append(WaitingMail(tried.letter, now + self._pauses[tried.tries], tried.tries + 1))
        return True
