"""Estimates how long requests compute, from those of the last hour: a price per second needn't hold that of a whole deadline. Pure."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from shared.types import ModelName

WITHIN_SECONDS = 3600.0
#: Slower requests pay for what is held.
MARGIN = 1.5
#: A busy model's last samples are enough. All take at most 10 MB.
_MAX_SAMPLES, _MAX_MODELS = 500, 200


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


class ComputePaces:
    def __init__(self) -> None:
        #: The model that was measured last is the last one.
        self._samples: dict[ModelName, deque[_Sample]] = {}

    def record(self, model: ModelName, *, prompt_seconds: float, seconds: float, tokens: int, now: float) -> None:
        """Record a request that computed so long for so many tokens of output."""
        samples = self._samples.pop(model, None) or deque(maxlen=_MAX_SAMPLES)
        samples.append(_Sample(now, prompt_seconds, max(0.0, seconds - prompt_seconds) / tokens))
        self._samples[model] = samples
        if len(self._samples) > _MAX_MODELS:
            del self._samples[next(iter(self._samples))]

    def find(self, model: ModelName, now: float) -> Pace | None:
        recent = [sample for sample in self._samples.get(model, ()) if now - sample.at <= WITHIN_SECONDS]
        if not recent:
            return None
        return Pace(_p95([sample.prompt_seconds for sample in recent]), _p95([sample.token_seconds for sample in recent]))


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
