"""Measures how fast an engine is, from the reports of its steps.  Pure; the caller passes the time."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from services.inference.engine import engine_messages

#: Covers dozens of steps on a slow processor, and shows a change at the next scrape.
WINDOW_SECONDS = 10.0
#: Steps are summed per second: storing each step of a GPU would take too much memory.
_SHARE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """Totals of the steps of the last WINDOW_SECONDS, and what the engines of a model use."""

    steps: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens_per_second: float = 0.0
    batch_tokens_per_second: float = 0.0
    #: Since the engine started, like cache_hits.
    cpu_seconds: float = 0.0
    ram_bytes: int = 0
    vram_bytes: int = 0
    #: The prompts that lost their slots.
    cache_bytes: int = 0
    cache_hits: int = 0

    @property
    def overhead(self) -> float:
        """The share of the step time spent outside llama_decode, from 0 to 1."""
        return min(1.0, max(0.0, 1 - self.decode_seconds / self.seconds)) if self.seconds > 0 else 0.0

    @property
    def batch_share(self) -> float:
        """The share of batch answers in the tokens, from 0 to 1."""
        return self.batch_tokens_per_second / self.tokens_per_second if self.tokens_per_second > 0 else 0.0

    @property
    def step_seconds(self) -> float:
        return self.seconds / self.steps if self.steps else 0.0


@dataclass(slots=True)
class _Share:
    began: float
    steps: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens: int = 0
    batch_tokens: int = 0


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
        share.tokens += sum(len(progress.token_ids) for progress in step.progress)
        share.batch_tokens += sum(len(progress.token_ids) for progress in step.progress if progress.seconds)
        self._used = EngineSpeed(cache_bytes=step.cache_bytes, cache_hits=step.cache_hits)

    def figures(self, now: float) -> EngineSpeed:
        shares = [share for share in self._shares if now - share.began < WINDOW_SECONDS]
        seconds = sum(share.seconds for share in shares)
        return replace(
            self._used,
            steps=sum(share.steps for share in shares),
            seconds=seconds,
            decode_seconds=sum(share.decode_seconds for share in shares),
            tokens_per_second=sum(share.tokens for share in shares) / seconds if seconds > 0 else 0.0,
            batch_tokens_per_second=sum(share.batch_tokens for share in shares) / seconds if seconds > 0 else 0.0,
        )


def together(replicas: Iterable[EngineSpeed]) -> EngineSpeed:
    """Combine the speeds of several engines that run the same model."""
    engines = list(replicas)
    return EngineSpeed(**{figure.name: sum(getattr(engine, figure.name) for engine in engines) for figure in fields(EngineSpeed)})
