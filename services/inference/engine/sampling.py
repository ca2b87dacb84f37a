"""Sampling parameters, their defaults, and the randomness of each position. Pure."""

from collections.abc import Callable

import msgspec

from shared.api.generation import MAX_SEED, Sampling

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.95
DEFAULT_TOP_K = 40

#: A lower temperature counts as 0: only the likeliest token would be drawn, and llama.cpp's 32-bit floats would overflow.
MIN_TEMPERATURE = 0.001

_MASK = (1 << 64) - 1


class Parameters(msgspec.Struct, frozen=True, array_like=True):
    """A generation's parameters, checked and with defaults. Part of the messages to the engine."""

    temperature: float
    top_p: float
    top_k: int
    seed: int
    #: None: what fits the context.
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    n: int = 1
    #: None for no log probabilities.
    top_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        return self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


def check(given: Sampling, *, context_tokens: int | None, draw_seed: Callable[[], int]) -> Parameters:
    """Fill in defaults. The contract's types have bounds."""
    temperature = DEFAULT_TEMPERATURE if given.temperature is None else given.temperature
    return Parameters(
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=DEFAULT_TOP_P if given.top_p is None else given.top_p,
        top_k=DEFAULT_TOP_K if given.top_k is None else given.top_k,
        seed=draw_seed() if given.seed is None else given.seed,
        # More than fits after the prompt is cut later.
        max_tokens=given.max_tokens if given.max_tokens is None else min(given.max_tokens, context_tokens or MAX_SEED),
        stop=given.stop,
        min_p=given.min_p or 0.0,
        repeat_penalty=1.0 if given.repeat_penalty is None else given.repeat_penalty,
        frequency_penalty=given.frequency_penalty or 0.0,
        presence_penalty=given.presence_penalty or 0.0,
        logit_bias=tuple(given.logit_bias.items()),
        ignore_eos=given.ignore_eos,
        n=given.n or 1,
        top_logprobs=given.top_logprobs,
    )


def of_answer(parameters: Parameters, answer: int) -> Parameters:
    """Return the parameters of one of several answers: the first is the same as a single answer."""
    return parameters if answer == 0 else msgspec.structs.replace(parameters, seed=(parameters.seed + answer) & MAX_SEED)


def mix(seed: int, position: int) -> int:
    """Return the randomness of one token: splitmix64 of (seed, position), cut to the 32 bits of llama.cpp's dist sampler.

    It depends on nothing else, so the same seed draws the same tokens in any batch, and on a worker that continues another's answer.
    Never 0xFFFFFFFF, which means a random seed to llama.cpp.
    """
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) & 0xFFFFFFFE
