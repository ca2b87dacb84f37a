"""Sampling parameters, their limits, and the randomness of each position.  Pure."""

import math
from collections.abc import Callable, Mapping

import msgspec

from shared import errors
from shared.api.generation import Sampling

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.95
DEFAULT_TOP_K = 40

MAX_TEMPERATURE = 2.0
#: A lower temperature counts as 0: only the likeliest token would be drawn, and llama.cpp's 32-bit floats would overflow.
LEAST_TEMPERATURE = 0.001
#: Larger than any vocabulary; 0 disables top_k.
MAX_TOP_K = 1_000_000
MAX_SEED = (1 << 63) - 1
MAX_TOKEN_ID = (1 << 31) - 1
#: Each stop sequence is searched for in every step (SECURITY.md, T5).
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 64
#: 1 has no effect; larger or smaller values produce noise.
MAX_REPEAT_PENALTY = 2.0
MIN_REPEAT_PENALTY = 0.1
MAX_PENALTY = 2.0
#: OpenAI's range: -100 bans a token, 100 forces it.
MAX_BIAS = 100.0
MAX_BIASES = 300
MAX_ANSWERS = 4
MAX_TOP_LOGPROBS = 20

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
    """Check the parameters and fill in defaults. Raises BadRequest, which names the first invalid field."""
    stop = _check_stop(given.stop)
    temperature = _number("temperature", given.temperature, DEFAULT_TEMPERATURE, most=MAX_TEMPERATURE)
    max_tokens = given.max_tokens
    if max_tokens is not None:
        # More than fits after the prompt is cut later.
        max_tokens = min(_whole("max_tokens", max_tokens, least=1, most=MAX_SEED), context_tokens or MAX_SEED)
    return Parameters(
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_p=_above_zero("top_p", _number("top_p", given.top_p, DEFAULT_TOP_P, most=1.0)),
        top_k=_whole("top_k", DEFAULT_TOP_K if given.top_k is None else given.top_k, least=0, most=MAX_TOP_K),
        seed=draw_seed() if given.seed is None else _whole("seed", given.seed, least=0, most=MAX_SEED),
        max_tokens=max_tokens,
        stop=stop,
        min_p=_number("min_p", given.min_p, 0.0, most=1.0),
        repeat_penalty=_number("repeat_penalty", given.repeat_penalty, 1.0, least=MIN_REPEAT_PENALTY, most=MAX_REPEAT_PENALTY),
        frequency_penalty=_number("frequency_penalty", given.frequency_penalty, 0.0, least=-MAX_PENALTY, most=MAX_PENALTY),
        presence_penalty=_number("presence_penalty", given.presence_penalty, 0.0, least=-MAX_PENALTY, most=MAX_PENALTY),
        logit_bias=_check_bias(given.logit_bias),
        ignore_eos=given.ignore_eos,
        n=_whole("n", 1 if given.n is None else given.n, least=1, most=MAX_ANSWERS),
        top_logprobs=None if given.top_logprobs is None else _whole("top_logprobs", given.top_logprobs, least=0, most=MAX_TOP_LOGPROBS),
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


def _number(field: str, value: float | None, default: float, *, least: float = 0.0, most: float) -> float:
    if value is None:
        return default
    if not math.isfinite(value) or not least <= value <= most:
        raise errors.BadRequest(f"{field} must be a number from {least:g} to {most:g}, not {value:g}")
    return float(value)


def _above_zero(field: str, value: float) -> float:
    if value == 0:
        raise errors.BadRequest(f"{field} must be more than 0, or else no token is left", hint="temperature 0 is greedy")
    return value


def _whole(field: str, value: int, *, least: int, most: int) -> int:
    if not least <= value <= most:
        # Don't repeat a number of a thousand digits.
        shown = str(value) if abs(value) <= _MASK else "a number beyond 64 bits"
        raise errors.BadRequest(f"{field} must be from {least} to {most}, not {shown}")
    return value


def _check_bias(bias: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """Check the biases; the engine checks whether the model has the tokens."""
    if len(bias) > MAX_BIASES:
        raise errors.BadRequest(f"logit_bias names {len(bias)} tokens; at most {MAX_BIASES} are allowed")
    return tuple(
        (
            _whole("logit_bias: a token id", token, least=0, most=MAX_TOKEN_ID),
            _number("logit_bias", value, 0.0, least=-MAX_BIAS, most=MAX_BIAS),
        )
        for token, value in bias.items()
    )


def _check_stop(stop: tuple[str, ...]) -> tuple[str, ...]:
    if len(stop) > MAX_STOPS:
        raise errors.BadRequest(f"stop holds {len(stop)} sequences; at most {MAX_STOPS} are allowed")
    for sequence in stop:
        if not 1 <= len(sequence) <= MAX_STOP_CHARACTERS:
            raise errors.BadRequest(f"stop: each sequence must have 1 to {MAX_STOP_CHARACTERS} characters, not {len(sequence)}")
    return stop
