"""Samples a sequence's next token with llama.cpp's samplers. Only the engine's process imports this module.

The randomness of a token only depends on the seed and its position (`sampling.mix`), not on earlier tokens, the batch or the worker.
"""

import ctypes
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import llama_cpp.llama_cpp as native
import numpy as np

from services.inference.engine import sampling
from services.inference.engine.sampling import Parameters
from services.inference.engine.sequence import DrawnToken, ThoughtLimit
from services.inference.engine.vocabulary import ModelVocabulary
from services.inference.structured_output.constraint import Constraint, Logits
from shared import errors
from shared.api.inference import TokenChance, TokenLogprob

#: Most threads of `StepSampler`.
MAX_THREADS = 8
#: With fewer logits in a step, waking the threads costs more than they save.
PARALLEL_LOGITS = 400_000

#: `_find_likeliest` compares the greatest logits of so many tokens each.
_COLUMN = 64
Tokens: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class _Candidates:
    """llama.cpp's list of tokens with their logits. Each thread has one, because the samplers sort it."""

    def __init__(self, size: int) -> None:
        self._all = np.arange(size, dtype=np.int64)
        self._items = np.zeros(size, _CANDIDATE)
        self._data = self._items.ctypes.data_as(native.llama_token_data_p)

    def sample(self, logits: Logits, likeliest: Tokens | None, samplers: Iterable["native.llama_sampler_p"]) -> int:
        """Sample from the ``likeliest`` tokens, or from all."""
        tokens = self._all if likeliest is None else likeliest
        items = self._items[: len(tokens)]
        items["id"], items["logit"] = tokens, logits if likeliest is None else logits[tokens]
        array = native.llama_token_data_array(data=self._data, size=len(tokens), selected=-1, sorted=False)
        for sampler in samplers:
            native.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.data[array.selected].id)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The tokens that a chain of samplers needs to see, of those that it may choose."""

    likeliest: int
    others: Tokens


def _find_likeliest(logits: Logits, wanted: Sequence[_Wanted | None]) -> list[Tokens | None]:
    """Return the wanted tokens of each row of ``logits`` and a few more; None for all.

    For a large vocabulary, this takes a tenth of the time of sorting it, and calls that work on several rows release the GIL.
    """
    likeliest: list[Tokens | None] = [None] * len(wanted)
    size = logits.shape[1]
    width = size // _COLUMN
    searched = {row: one for row, one in enumerate(wanted) if one is not None and one.likeliest < width}
    if not searched:
        return likeliest
    if len(searched) < len(wanted):
        logits = logits[[*searched]]
    table = logits[:, : width * _COLUMN].reshape(len(searched), _COLUMN, width)
    # Each column's greatest logit is that of another token, so at least as many tokens reach the limit.
    peaks = table.max(axis=1)
    places = [width - one.likeliest for one in searched.values()]
    limits = np.partition(peaks, sorted({*places}), axis=1)[range(len(places)), places]
    # Several times as fast as np.nonzero for tables.
    rows, columns = np.divmod(np.flatnonzero(peaks >= limits[:, None]), width)
    found, levels = np.divmod(np.flatnonzero(table[rows, :, columns] >= limits[rows, None]), _COLUMN)
    keys = np.sort(rows[found] * size + levels * width + columns[found])
    cuts = np.searchsorted(keys, [place * size for place in range(len(searched) + 1)])
    # In no column.
    rest = np.arange(width * _COLUMN, size)
    for place, (row, one) in enumerate(searched.items()):
        tokens = keys[cuts[place] : cuts[place + 1]] - place * size
        if len(tokens) < one.likeliest:
            continue  # there are logits that can't be compared
        if len(one.others):
            tokens = np.concatenate((tokens, one.others[(logits[place, one.others] < limits[place]) & (one.others < width * _COLUMN)]))
        likeliest[row] = np.concatenate((tokens, rest)) if len(rest) else tokens
    return likeliest


class TokenSampler:
    """Samples the tokens of one sequence. Call ``free`` at its end."""

    def __init__(
        self,
        vocabulary: ModelVocabulary,
        parameters: Parameters,
        constraint: Constraint | None = None,
        thoughts: ThoughtLimit | None = None,
    ) -> None:
        """Raises BadRequest for an invalid bias."""
        _check_bias(vocabulary, parameters)
        self._vocabulary = vocabulary
        self._parameters = parameters
        self._constraint = constraint
        self._thoughts = thoughts
        #: Computes something for the whole vocabulary.
        self.is_slow = constraint is not None or parameters.top_logprobs is not None
        biases = _biases(vocabulary, parameters)
        self.wanted = _find_wanted(parameters, biases)
        # Samplers have buffers, so threads can't share them.
        self._chain: native.llama_sampler_p = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        for sampler in _samplers(parameters, biases, vocabulary.size):
            native.llama_sampler_chain_add(self._chain, sampler)

    def free(self) -> None:
        native.llama_sampler_free(self._chain)

    def replay(self, token: int) -> None:
        """Accept a token that another worker drew. Raises BadRequest for an impossible one, on which llama.cpp would abort."""
        if token >= self._vocabulary.size:
            raise errors.BadRequest(f"delivered: this model has no token {token}")
        if self._constraint is not None and self._constraint.applies and not self._constraint.allows(token):
            raise errors.BadRequest("delivered: these tokens do not match the requested format")
        self._accept(token)

    def draw(self, candidates: _Candidates, logits: Logits, likeliest: Tokens | None, position: int) -> DrawnToken:
        """Draw the token at ``position`` from a row of the last batch."""
        if self._thoughts is not None and (forced := self._thoughts.next_token) is not None:
            token = forced
        elif self._parameters.temperature > 0:
            dist = native.llama_sampler_init_dist(sampling.mix(self._parameters.seed, position))
            token = self._draw(candidates, logits, likeliest, (self._chain, dist))
            native.llama_sampler_free(dist)
        else:
            token = self._draw(candidates, logits, likeliest, (self._chain,))
        if self._thoughts is not None and token in self._vocabulary.end_tokens and (forced := self._thoughts.end()) is not None:
            token = forced
        self._accept(token)
        if self._constraint is not None and self._constraint.is_too_costly:
            return DrawnToken(token, is_cut=True)
        if self._parameters.top_logprobs is None:
            return DrawnToken(token)
        return DrawnToken(token, self._chances(logits, token, self._parameters.top_logprobs))

    def _accept(self, token: int) -> None:
        native.llama_sampler_accept(self._chain, token)
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._thoughts is not None:
            self._thoughts.accept(self._vocabulary.piece(token) or b"")

    def _draw(
        self, candidates: _Candidates, logits: Logits, likeliest: Tokens | None, samplers: tuple["native.llama_sampler_p", ...]
    ) -> int:
        """With a grammar, check the drawn token first; find all allowed tokens only if it isn't one."""
        token = candidates.sample(logits, likeliest, samplers)
        constraint = self._constraint
        if constraint is not None and constraint.applies and not constraint.allows(token):
            masked = constraint.masked(logits)
            token = candidates.sample(masked, _find_likeliest(masked[None], [self.wanted])[0], samplers)
            if not constraint.allows(token):
                # Nothing may follow except the end, which ignore_eos banned.
                return min(self._vocabulary.end_tokens, default=token)
        return token

    def _chances(self, logits: Logits, token: int, top: int) -> TokenLogprob:
        highest = float(logits.max())
        total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))

        def chance(one: int) -> TokenChance:
            return TokenChance(one, self._vocabulary.piece(one, True) or b"", float(logits[one]) - total)

        likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.int64)
        ordered = sorted((int(one) for one in likeliest), key=lambda one: (-float(logits[one]), one))
        return TokenLogprob(chance(token), tuple(chance(one) for one in ordered))


class StepSampler:
    """Draws the tokens of a step. What takes long is done in several threads: NumPy, llama.cpp and llguidance release the GIL.

    Drawing from a few tokens takes twenty short calls; several threads would spend more time on handing the GIL to one another.
    """

    def __init__(self, vocabulary_size: int, threads: int) -> None:
        self._candidates = [_Candidates(vocabulary_size) for _ in range(min(threads, MAX_THREADS))]
        #: They start with their first work.
        self._helpers = ThreadPoolExecutor(MAX_THREADS, "draw")

    def draw(self, samplers: Sequence[TokenSampler], logits: Logits, positions: Sequence[int]) -> list[DrawnToken]:
        """Draw a token for each sampler from its row of ``logits``."""
        own, *others = self._candidates if logits.size >= PARALLEL_LOGITS and len(samplers) > 1 else self._candidates[:1]
        wanted = [sampler.wanted for sampler in samplers]
        length = -(-len(samplers) // (1 + len(others)))
        parts = [slice(first, first + length) for first in range(0, len(samplers), length)]
        drawn: dict[int, DrawnToken] = {}

        def find(part: slice) -> list[Tokens | None]:
            return _find_likeliest(logits[part], wanted[part])

        def draw_rows(rows: Iterable[int], candidates: _Candidates) -> None:
            for row in rows:
                drawn[row] = samplers[row].draw(candidates, logits[row], likeliest[row], positions[row])

        likeliest = [*itertools.chain.from_iterable((self._helpers.map if others else map)(find, parts))]
        slow = [row for row, sampler in enumerate(samplers) if likeliest[row] is None or sampler.is_slow]
        shared = iter(slow)
        helping = [self._helpers.submit(draw_rows, shared, each) for each in others[: len(slow) - 1]] if slow else []
        draw_rows(sorted({*range(len(samplers))} - {*slow}), own)
        draw_rows(shared, own)
        for helper in helping:
            helper.result()
        return [drawn[row] for row in range(len(samplers))]

    def draw_draft(self, sampler: TokenSampler, logits: Logits, position: int, draft: Sequence[int]) -> list[DrawnToken]:
        """Draw from the first row of ``logits``, and from the next one as long as the token is the next of ``draft``."""
        likeliest = _find_likeliest(logits, [sampler.wanted] * len(logits))
        drawn: list[DrawnToken] = []
        for row, guess in enumerate((*draft, None)):
            drawn.append(sampler.draw(self._candidates[0], logits[row], likeliest[row], position + row))
            if drawn[-1].token != guess or drawn[-1].is_cut:
                break
        return drawn

    def free(self) -> None:
        self._helpers.shutdown()


def _biases(vocabulary: ModelVocabulary, parameters: Parameters) -> dict[int, float]:
    banned = vocabulary.end_tokens if parameters.ignore_eos else ()
    return dict(parameters.logit_bias) | dict.fromkeys(banned, float("-inf"))


def _find_wanted(parameters: Parameters, biased: Collection[int]) -> _Wanted | None:
    """Return the tokens that can be drawn; None if these may be most of the vocabulary."""
    most = 1 if parameters.temperature == 0 else parameters.top_k
    if parameters.has_penalties or most <= 0:
        return None
    # Each token whose bias lowers it lets another one in.
    return _Wanted(most + len(biased), np.array(sorted(biased), np.int64))


def _samplers(parameters: Parameters, biases: Mapping[int, float], vocabulary_size: int) -> list["native.llama_sampler_p"]:
    """Create the samplers before the final draw, in llama.cpp's usual order."""
    found = []
    if biases:
        entries = (native.llama_logit_bias * len(biases))(*(native.llama_logit_bias(token, bias) for token, bias in biases.items()))
        found.append(native.llama_sampler_init_logit_bias(vocabulary_size, len(biases), entries))
    if parameters.has_penalties:
        # Penalties cover the whole answer, but not the prompt, whose words may be repeated.
        assert parameters.max_tokens is not None  # the engine sets what fits
        window = parameters.max_tokens
        found.append(
            native.llama_sampler_init_penalties(
                vocabulary_size, window, parameters.repeat_penalty, parameters.frequency_penalty, parameters.presence_penalty
            )
        )
    if parameters.temperature == 0:
        return [*found, native.llama_sampler_init_greedy()]
    found += [native.llama_sampler_init_top_k(parameters.top_k), native.llama_sampler_init_top_p(parameters.top_p, 1)]
    if parameters.min_p > 0:
        found.append(native.llama_sampler_init_min_p(parameters.min_p, 1))
    return [*found, native.llama_sampler_init_temp(parameters.temperature)]


def _check_bias(vocabulary: ModelVocabulary, parameters: Parameters) -> None:
    if any(token >= vocabulary.size for token, _ in parameters.logit_bias):
        raise errors.BadRequest(f"logit_bias has an unknown token; the model's last one is {vocabulary.size - 1}")
