"""Samples a sequence's next token with llama.cpp's samplers. Only the engine's process imports this module.

The randomness of a token only depends on the seed and its position (`sampling.mix`), not on earlier tokens, the batch or the worker.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, TypeAlias

import llama_cpp.llama_cpp as native
import msgspec
import numpy as np

from services.inference.engine import sampling
from services.inference.engine.sampling import Parameters
from services.inference.engine.sequence import DrawnToken
from services.inference.engine.vocabulary import ModelVocabulary
from shared import errors
from shared.api.inference import TokenChance, TokenLogprob

Logits: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(slots=True)
class _SharedChain:
    chain: "native.llama_sampler_p"
    users: int = 0


class SamplerChains:
    """The sampler chains of all sequences. Sequences with the same parameters share a chain if it has no state, because each chain has
    a list of all tokens, of at least 0.6 MB."""

    def __init__(self, vocabulary: ModelVocabulary) -> None:
        self._vocabulary = vocabulary
        self._shared: dict[Parameters, _SharedChain] = {}

    def acquire(self, parameters: Parameters) -> "native.llama_sampler_p":
        if parameters.has_penalties:
            return self._make(parameters)
        key = _key(parameters)
        shared = self._shared.get(key) or _SharedChain(self._make(parameters))
        self._shared[key] = shared
        shared.users += 1
        return shared.chain

    def release(self, parameters: Parameters, chain: "native.llama_sampler_p") -> None:
        if not parameters.has_penalties:
            shared = self._shared[_key(parameters)]
            shared.users -= 1
            if shared.users:
                return
            del self._shared[_key(parameters)]
        native.llama_sampler_free(chain)

    def _make(self, parameters: Parameters) -> "native.llama_sampler_p":
        chain: native.llama_sampler_p = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        for sampler in _samplers(self._vocabulary, parameters):
            native.llama_sampler_chain_add(chain, sampler)
        return chain


def _key(parameters: Parameters) -> Parameters:
    """Remove the parameters that ``_samplers`` ignores without penalties."""
    return msgspec.structs.replace(parameters, seed=0, max_tokens=None, stop=(), n=1, top_logprobs=None)


class TokenSampler:
    """Samples the tokens of one sequence. Call ``free`` at its end."""

    def __init__(
        self, vocab: native.llama_vocab_p, vocabulary: ModelVocabulary, chains: SamplerChains, parameters: Parameters, grammar: str
    ) -> None:
        """Raises BadRequest for an invalid bias or grammar."""
        _check_bias(vocabulary, parameters)
        self._vocabulary = vocabulary
        self._parameters = parameters
        self._grammar = _grammar(vocab, grammar) if grammar else None
        self._chains = chains
        self._chain = chains.acquire(parameters)

    def free(self) -> None:
        self._chains.release(self._parameters, self._chain)
        if self._grammar is not None:
            native.llama_sampler_free(self._grammar)

    def replay(self, token: int) -> None:
        """Accept a token that another worker drew. Raises BadRequest for an impossible one, on which llama.cpp would abort."""
        if token >= self._vocabulary.size:
            raise errors.BadRequest(f"delivered: this model has no token {token}")
        if self._grammar is not None:
            if not _allows(self._grammar, token):
                raise errors.BadRequest("delivered: these tokens do not match the requested format")
            native.llama_sampler_accept(self._grammar, token)
        native.llama_sampler_accept(self._chain, token)

    def draw(self, context: native.llama_context_p, row: int, position: int) -> DrawnToken:
        """Draw the token at ``position`` from a row of the last batch."""
        logits = None
        if self._grammar is not None or self._parameters.top_logprobs is not None:
            logits = np.ctypeslib.as_array(native.llama_get_logits_ith(context, row), (self._vocabulary.size,))
        dist = None
        if self._parameters.temperature > 0:
            dist = native.llama_sampler_init_dist(sampling.mix(self._parameters.seed, position))
            native.llama_sampler_chain_add(self._chain, dist)
        if self._grammar is None or logits is None:
            token = int(native.llama_sampler_sample(self._chain, context, row))
        else:
            token = self._draw_by_grammar(self._grammar, logits)
        if dist is not None:
            native.llama_sampler_free(native.llama_sampler_chain_remove(self._chain, native.llama_sampler_chain_n(self._chain) - 1))
        if self._parameters.top_logprobs is None or logits is None:
            return DrawnToken(token)
        return DrawnToken(token, self._chances(logits, token, self._parameters.top_logprobs))

    def _draw_by_grammar(self, grammar: "native.llama_sampler_p", logits: Logits) -> int:
        """Check the drawn token first; apply the slow grammar to all tokens only if it refuses that one."""
        token = self._apply(logits, None)
        if not _allows(grammar, token):
            token = self._apply(logits, grammar)
            if not _allows(grammar, token):
                # Nothing may follow except the end, which ignore_eos banned.
                return min(self._vocabulary.end_tokens, default=token)
        native.llama_sampler_accept(grammar, token)
        native.llama_sampler_accept(self._chain, token)
        return token

    def _apply(self, logits: Logits, grammar: "native.llama_sampler_p | None") -> int:
        candidates = np.empty(len(logits), _CANDIDATE)
        candidates["id"], candidates["logit"], candidates["p"] = np.arange(len(logits), dtype=np.int32), logits, 0.0
        array = _array(candidates)
        if grammar is not None:
            native.llama_sampler_apply(grammar, ctypes.byref(array))
        native.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _chances(self, logits: Logits, token: int, top: int) -> TokenLogprob:
        highest = float(logits.max())
        total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))

        def chance(one: int) -> TokenChance:
            return TokenChance(one, self._vocabulary.piece(one, True) or b"", float(logits[one]) - total)

        likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.int64)
        ordered = sorted((int(one) for one in likeliest), key=lambda one: (-float(logits[one]), one))
        return TokenLogprob(chance(token), tuple(chance(one) for one in ordered))


def _samplers(vocabulary: ModelVocabulary, parameters: Parameters) -> list["native.llama_sampler_p"]:
    """Create the samplers before the final draw, in llama.cpp's usual order."""
    found = []
    biases = dict(parameters.logit_bias)
    if parameters.ignore_eos:
        biases |= dict.fromkeys(vocabulary.end_tokens, float("-inf"))
    if biases:
        entries = (native.llama_logit_bias * len(biases))(*(native.llama_logit_bias(token, bias) for token, bias in biases.items()))
        found.append(native.llama_sampler_init_logit_bias(vocabulary.size, len(biases), entries))
    if parameters.has_penalties:
        # Penalties cover the whole answer, but not the prompt, whose words may be repeated.
        window = parameters.max_tokens or sampling.DEFAULT_MAX_TOKENS
        found.append(
            native.llama_sampler_init_penalties(
                vocabulary.size, window, parameters.repeat_penalty, parameters.frequency_penalty, parameters.presence_penalty
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


def _grammar(vocab: native.llama_vocab_p, text: str) -> "native.llama_sampler_p":
    sampler: native.llama_sampler_p | None = native.llama_sampler_init_grammar(vocab, text.encode(), b"root")
    if sampler is None or not ctypes.cast(sampler, ctypes.c_void_p).value:
        raise errors.BadRequest("format: llama.cpp cannot read this grammar")
    return sampler


def _allows(grammar: "native.llama_sampler_p", token: int) -> bool:
    array = _array(np.array([(token, 0.0, 0.0)], _CANDIDATE))
    native.llama_sampler_apply(grammar, ctypes.byref(array))
    return bool(array.data[0].logit > float("-inf"))


def _array(candidates: "np.ndarray[Any, np.dtype[np.void]]") -> native.llama_token_data_array:
    data = candidates.ctypes.data_as(native.llama_token_data_p)
    return native.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
