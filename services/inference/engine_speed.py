"""Measures how fast an engine is, from the reports of its steps.  Pure; the caller passes the time."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from services.inference.engine import engine_messages

#: Covers dozens of steps on a slow processor, and shows a change at the next scrape.
WINDOW_SECONDS = 10.0
#: Steps are summed per second: storing each step of a GPU would take too much memory.
_SHARE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """Averages over the last WINDOW_SECONDS, all 0 if no step ran; and what the engines of a model use."""

    steps: int = 0
    #: Share of the step time spent outside llama_decode, from 0 to 1.
    overhead: float = 0.0
    step_seconds: float = 0.0
    tokens_per_second: float = 0.0
    #: Since the engine started, like cache_hits.
    cpu_seconds: float = 0.0
    ram_bytes: int = 0
    vram_bytes: int = 0
    #: Of prompts that lost their slots.
    cache_bytes: int = 0
    cache_hits: int = 0


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
        self._used = EngineSpeed()

    def record(self, step: engine_messages.StepReport, now: float) -> None:
        if not self._shares or now - self._shares[-1].began >= _SHARE_SECONDS:
            self._shares.append(_Share(now))
        share = self._shares[-1]
        share.steps += 1
        share.seconds += step.seconds
        share.decode_seconds += step.decode_seconds
        share.tokens += step.answering
        self._used = EngineSpeed(cache_bytes=step.cache_bytes, cache_hits=step.cache_hits)

    def figures(self, now: float) -> EngineSpeed:
        shares = [share for share in self._shares if now - share.began < WINDOW_SECONDS]
        steps = sum(share.steps for share in shares)
        seconds = sum(share.seconds for share in shares)
        if seconds <= 0:
            return replace(self._used, steps=steps)
        return replace(
            self._used,
            steps=steps,
            overhead=min(1.0, max(0.0, 1 - sum(share.decode_seconds for share in shares) / seconds)),
            step_seconds=seconds / steps,
            tokens_per_second=sum(share.tokens for share in shares) / seconds,
        )


def together(replicas: Iterable[EngineSpeed]) -> EngineSpeed:
    """Combine the speeds of several engines that run the same model."""
    engines = list(replicas)
    worked = [one for one in engines if one.steps]
    seconds = sum(one.steps * one.step_seconds for one in worked)
    used = EngineSpeed(
        steps=sum(one.steps for one in worked),
        cpu_seconds=sum(one.cpu_seconds for one in engines),
        ram_bytes=sum(one.ram_bytes for one in engines),
        cache_bytes=sum(one.cache_bytes for one in engines),
        cache_hits=sum(one.cache_hits for one in engines),
    )
    if seconds <= 0:
        return used
    return replace(
        used,
        overhead=sum(one.overhead * one.steps * one.step_seconds for one in worked) / seconds,
        step_seconds=seconds / used.steps,
        tokens_per_second=sum(one.tokens_per_second for one in worked),
    )
