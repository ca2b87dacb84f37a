"""Checks another server's token counts, and replaces impossible ones.  Pure.

The replacement is a lower bound that this worker counted itself: the words of the prompt, or the pieces of the answer. The log
names the replaced counts (`usage_recounted`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from services.inference.backends.remote.event_stream import convert_or
from shared.api import embedding
from shared.api.embedding import EmbeddingInput
from shared.api.generation import ChatMessage, Sampling, Usage

#: Tokens that a server may add to a prompt: its own instructions and the template.
HIDDEN_PROMPT_TOKENS = 32_768
#: Tokens that an embedding model may add around a text.
ADDED_TOKENS = 4
LONGEST_ANSWER_TOKENS = 10_000_000


class _TokenDetails(msgspec.Struct, frozen=True):
    cached_tokens: object = None
    reasoning_tokens: object = None


class ReportedUsage(msgspec.Struct, frozen=True):
    """The server's counts, unchecked."""

    prompt_tokens: object = None
    completion_tokens: object = None
    prompt_tokens_details: object = None
    completion_tokens_details: object = None

    @property
    def cached_tokens(self) -> object:
        return convert_or(_TokenDetails(), self.prompt_tokens_details).cached_tokens

    @property
    def reasoning_tokens(self) -> object:
        return convert_or(_TokenDetails(), self.completion_tokens_details).reasoning_tokens


@dataclass(frozen=True, slots=True)
class CountBounds:
    """The plausible token counts of a request, estimated without a tokenizer."""

    #: No tokenizer in use joins two words into one token.
    least_prompt: int
    #: A token covers at least one byte of the request, or is hidden.
    most_prompt: int
    #: No one pays for more than was requested, plus one end token per answer, which some servers count.
    most_completion: int


@dataclass(frozen=True, slots=True)
class CheckedCounts:
    usage: Usage
    #: The counts that were replaced: prompt_tokens, completion_tokens.
    recounted: tuple[str, ...] = ()


def bounds(messages: tuple[ChatMessage, ...], asked: Sampling, sent_bytes: int, max_tokens: int) -> CountBounds:
    return CountBounds(
        least_prompt=max(1, sum(len(message.content.split()) for message in messages)),
        most_prompt=sent_bytes + HIDDEN_PROMPT_TOKENS,
        most_completion=(asked.n or 1) * (min(max_tokens, LONGEST_ANSWER_TOKENS) + 1),
    )


def settle(reported: ReportedUsage, pieces: int, thoughts: int, known: CountBounds) -> CheckedCounts:
    """Check the server's counts. ``pieces`` is the number of times it sent text, and ``thoughts`` of those with thoughts."""
    prompt, completion, cached, reasoning = (
        reported.prompt_tokens, reported.completion_tokens, reported.cached_tokens, reported.reasoning_tokens,
    )  # fmt: skip
    recounted = []
    if not _is_count(prompt, least=1, most=known.most_prompt):
        recounted.append("prompt_tokens")
        prompt = known.least_prompt
    # A piece has at least one token. Of several answers, llama.cpp's server only counts one.
    at_least = min(pieces, known.most_completion)
    if not _is_count(completion, least=at_least, most=known.most_completion):
        recounted.append("completion_tokens")
        completion = at_least
    assert isinstance(prompt, int)
    assert isinstance(completion, int)
    kept = cached if isinstance(cached, int) and _is_count(cached, least=0, most=prompt) else 0
    thought = reasoning if isinstance(reasoning, int) and _is_count(reasoning, least=0, most=completion) else min(thoughts, completion)
    return CheckedCounts(Usage(prompt, completion, kept, thought), tuple(recounted))


def settle_texts(prompt: object, texts: Sequence[EmbeddingInput]) -> tuple[int, bool]:
    """Return the token count of embedded texts, and whether the server's count was replaced."""
    most = sum(embedding.input_bytes(text) + ADDED_TOKENS for text in texts)
    if isinstance(prompt, int) and _is_count(prompt, least=len(texts), most=most):
        return prompt, False
    return sum(max(1, len(text.split() if isinstance(text, str) else text)) for text in texts), True


def _is_count(value: object, *, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
