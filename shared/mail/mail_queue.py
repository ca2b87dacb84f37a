"""The queue of outgoing mails: its bound, the next one, and retries. Pure; the caller brings the clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.mail.letters import Letter

#: About 2 kB each. A longer queue means that the mail server has been down for long.
MOST_WAITING = 100
#: After a temporary failure. Greylisting servers accept a mail after a minute or two.
PAUSES_SECONDS = (5.0, 30.0, 180.0)


@dataclass(frozen=True, slots=True)
class WaitingMail:
    letter: Letter
    due_at: float
    tries: int = 0


class MailQueue:
    def __init__(self, pauses_seconds: Sequence[float] = PAUSES_SECONDS) -> None:
        """A mail that still fails after the last pause is lost."""
        self._pauses = tuple(pauses_seconds)
        self._waiting: list[WaitingMail] = []
        self.sent = 0
        self.lost = 0
        #: Why the last try failed; empty if it succeeded.
        self.last_failure = ""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more fit."""
        return max(0, MOST_WAITING - len(self._waiting))

    def put(self, letter: Letter, now: float) -> bool:
        """Return False if the queue is full, and the mail lost."""
        if not self.room:
            self.lost += 1
            return False
        self._waiting.append(WaitingMail(letter, now))
        return True

    def take_due(self, now: float) -> WaitingMail | None:
        """Remove and return the mail that is due for longest."""
        due = min(self._waiting, key=lambda waiting: waiting.due_at, default=None)
        if due is None or due.due_at > now:
            return None
        self._waiting.remove(due)
        return due

    def seconds_to_wait(self, now: float) -> float | None:
        """Return the time until the next one is due; None if the queue is empty."""
        return min((max(0.0, waiting.due_at - now) for waiting in self._waiting), default=None)

    def succeeded(self) -> None:
        self.sent += 1
        self.last_failure = ""

    def failed(self, tried: WaitingMail, now: float, *, for_good: bool, why: str) -> bool:
        """Return whether it will be retried."""
        self.last_failure = why
        if for_good or tried.tries >= len(self._pauses):
            self.lost += 1
            return False
        # May exceed the bound by the one mail that was being sent.
        self._waiting.append(WaitingMail(tried.letter, now + self._pauses[tried.tries], tried.tries + 1))
        return True
