"""Which workers told wrong numbers so often that they get no more requests for a while.  Pure; the caller brings the clock.

What a worker claims is never paid (``active_prompt``), so a wrong count costs nobody anything; but one that lies about its counts may lie
about more. Other than a failure, this follows the machine and not its process: to start it again is no way out. The way back is time, or an
administrator's pardon. ``quarantine`` makes this the same at all gateways, and keeps it over their restarts.
"""

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from services.gateway.scheduling.routing import WorkerRequirements
from shared.types import NodeId

#: So many put a worker away; older ones than the time do not count.
STRIKES, WITHIN_SECONDS = 3, 3600.0
QUARANTINE_SECONDS = 3600.0
#: What may be told beside what came, of each answer: some count its end, which is no text.
_SLACK_SHARE, _SLACK_TOKENS = 0.02, 1
#: More than any prompt that is let in, and what a template or a server may add to it unseen.
MOST_PROMPT_TOKENS = 4 * 1024 * 1024


@dataclass(slots=True)
class _StrikeRecord:
    struck_at: deque[float] = field(default_factory=lambda: deque(maxlen=STRIKES))
    until: float = 0.0


class DishonestWorkers:
    """One for the gateway."""

    def __init__(self) -> None:
        #: Only of those that have told a wrong number; who has a certificate is known by name, so these are few.
        self._records: dict[NodeId, _StrikeRecord] = {}

    def strike(self, node: NodeId, now: float) -> bool:
        """It told a wrong number. True where that puts it away."""
        record = self._records.setdefault(node, _StrikeRecord())
        if now < record.until:
            return False  # of what it had begun before
        record.struck_at.append(now)
        if len(record.struck_at) < STRIKES or now - record.struck_at[0] > WITHIN_SECONDS:
            return False
        record.struck_at.clear()
        record.until = now + QUARANTINE_SECONDS
        return True

    def learn(self, left: Mapping[NodeId, float], now: float, *, unless: Set[NodeId] = frozenset()) -> None:
        """For how long all gateways keep workers away, by what each of them has seen. Nothing is learned of those of ``unless``."""
        for node in (self._records.keys() | left.keys()) - unless:
            record = self._records.setdefault(node, _StrikeRecord())
            seconds = left.get(node, 0.0)
            if seconds or now < record.until:
                # It was put away, or pardoned.
                record.struck_at.clear()
            record.until = now + seconds if seconds else 0.0

    def seconds_left(self, node: NodeId, now: float) -> float:
        """How long it gets no requests; 0 where it does."""
        record = self._records.get(node)
        return 0.0 if record is None else max(0.0, record.until - now)


def why_not(seconds_left: float) -> str:
    """For people; empty where it gets requests."""
    if not seconds_left:
        return ""
    return f"is in quarantine for {max(1, round(seconds_left / 60))} min: it told wrong counts of tokens {STRIKES} times"


def is_wrong(claimed: int, came: int, answers: int) -> bool:
    """Whether a worker that gave so many tokens of an answer may not say so many. ``came`` 0: it gives none, and nobody can tell."""
    if claimed < 0:
        return True
    return came > 0 and abs(claimed - came) > max(_SLACK_TOKENS * answers, _SLACK_SHARE * came)


def is_impossible(wish: WorkerRequirements, prompt_tokens: int) -> bool:
    """A prompt is read by the worker's own tokenizer and template, so only what no prompt can have is wrong."""
    return not 0 <= prompt_tokens <= max(wish.prompt_tokens, MOST_PROMPT_TOKENS)
