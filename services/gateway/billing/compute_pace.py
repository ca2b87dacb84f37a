"""Estimates how long requests compute, from those of the last hour: a price per second needn't hold that of a whole deadline. Pure."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.types import ModelName

WITHIN_SECONDS = 3600.0
#: Slower requests pay for what is held.
MARGIN = 1.5
#: A busy model's last samples are enough. All take at most 10 MB.
_MAX_SAMPLES, _MAX_MODELS = 500, 200
#: A pace stands for so long, because samples are sorted to find it.
_KEPT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The p95 of each, of a model over its machines."""

    #: Until the first token: long prompts with short answers compute most of their time here.
    prompt_seconds: float
    #: For each token after that.
    token_seconds: float

    def seconds(self, tokens: int) -> float:
        return MARGIN * (self.prompt_seconds + self.token_seconds * tokens)


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    prompt_seconds: float
    token_seconds: float


@dataclass(slots=True)
class _Measurements:
    samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=_MAX_SAMPLES))
    pace: Pace | None = None
    found_at: float = -math.inf


class ComputePaces:
    """Measures the models whose pace was asked for: those with a price per second."""

    def __init__(self) -> None:
        #: The model that was measured last is the last one.
        self._models: dict[ModelName, _Measurements] = {}

    def record(self, model: ModelName, *, prompt_seconds: float, seconds: float, tokens: int, now: float) -> None:
        """Record a request that computed so long for so many tokens of output."""
        if (measured := self._models.pop(model, None)) is not None:
            measured.samples.append(_Sample(now, prompt_seconds, max(0.0, seconds - prompt_seconds) / tokens))
            self._models[model] = measured

    def find(self, model: ModelName, now: float) -> Pace | None:
        if (measured := self._models.get(model)) is None:
            self._models[model] = _Measurements()
            if len(self._models) > _MAX_MODELS:
                del self._models[next(iter(self._models))]
            return None
        if measured.pace is None or now - measured.found_at >= _KEPT_SECONDS:
            recent = [sample for sample in measured.samples if now - sample.at <= WITHIN_SECONDS]
            prompts, tokens = [sample.prompt_seconds for sample in recent], [sample.token_seconds for sample in recent]
            measured.pace, measured.found_at = Pace(_p95(prompts), _p95(tokens)) if recent else None, now
        return measured.pace


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
