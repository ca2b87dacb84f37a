"""Measures how fast an engine is, from the reports of its steps.  Pure; the caller passes the time."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from services.inference.engine import engine_messages

#: Covers dozens of steps on a slow processor, and shows a change at the next scrape.
WINDOW_SECONDS = 10.0
#: Steps are summed per second: storing each step of a GPU would take too much memory.
_SHARE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """Averages over the last WINDOW_SECONDS; all 0 if no step ran."""

    steps: int = 0
    #: Share of the step time spent outside llama_decode, from 0 to 1.
    overhead: float = 0.0
    step_seconds: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(slots=True)
class _Share:
    began: float
    steps: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens: int = 0


class StepMeter:
    """Collects the step reports of one engine."""

    def __init__(self) -> None:
        self._shares: deque[_Share] = deque(maxlen=round(WINDOW_SECONDS / _SHARE_SECONDS))

    def record(self, step: engine_messages.StepReport, now: float) -> None:
        if not self._shares or now - self._shares[-1].began >= _SHARE_SECONDS:
            self._shares.append(_Share(now))
        share = self._shares[-1]
        share.steps += 1
        share.seconds += step.seconds
        share.decode_seconds += step.decode_seconds
        share.tokens += step.answering

    def figures(self, now: float) -> EngineSpeed:
        shares = [share for share in self._shares if now - share.began < WINDOW_SECONDS]
        steps = sum(share.steps for share in shares)
        seconds = sum(share.seconds for share in shares)
        if seconds <= 0:
            return EngineSpeed(steps=steps)
        return EngineSpeed(
            steps=steps,
            overhead=min(1.0, max(0.0, 1 - sum(share.decode_seconds for share in shares) / seconds)),
            step_seconds=seconds / steps,
            tokens_per_second=sum(share.tokens for share in shares) / seconds,
        )


def together(replicas: Iterable[EngineSpeed]) -> EngineSpeed:
    """Combine the speeds of several engines that run the same model."""
    worked = [one for one in replicas if one.steps]
    steps = sum(one.steps for one in worked)
    seconds = sum(one.steps * one.step_seconds for one in worked)
    if seconds <= 0:
        return EngineSpeed(steps=steps)
    return EngineSpeed(
        steps=steps,
        overhead=sum(one.overhead * one.steps * one.step_seconds for one in worked) / seconds,
        step_seconds=seconds / steps,
        tokens_per_second=sum(one.tokens_per_second for one in worked),
    )
