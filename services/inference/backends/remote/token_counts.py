"""Which of another server's token counts can be believed, and what to count instead.  Pure.

A count that cannot be true is replaced by a lower bound that this worker saw itself: the words of the prompt, and the pieces of the
answer. The names of the replaced counts go to the log (`usage_recounted`), because the contract has no field for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.api.generation import ChatMessage, Sampling, Usage

#: What a server may put before a prompt that nobody here sees: its own instructions, and the template's marks.
HIDDEN_PROMPT_TOKENS = 32_768
#: Tokens that a model may add around a text whose vector it computes.
ADDED_TOKENS = 4
#: Of one answer; longer than any model's context, for a caller who asked for as much as there is.
LONGEST_ANSWER_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class CountBounds:
    """What this worker knows of a request's tokens without a tokenizer."""

    #: No tokenizer in use joins two words to one token.
    least_prompt: int
    #: A token stands for at least one byte of what was sent, or for something hidden.
    most_prompt: int
    #: Nobody pays for more than was asked for. One more for each answer is its end, which some servers count.
    most_completion: int


@dataclass(frozen=True, slots=True)
class CheckedCounts:
    usage: Usage
    #: prompt_tokens, completion_tokens, where the server's own count was not believed.
    recounted: tuple[str, ...] = ()


def bounds(messages: tuple[ChatMessage, ...], asked: Sampling, *, sent_bytes: int, max_tokens: int) -> CountBounds:
    return CountBounds(
        least_prompt=max(1, sum(len(message.content.split()) for message in messages)),
        most_prompt=sent_bytes + HIDDEN_PROMPT_TOKENS,
        most_completion=(asked.n or 1) * (min(max_tokens, LONGEST_ANSWER_TOKENS) + 1),
    )


def settle(prompt: object, completion: object, cached: object, pieces: int, known: CountBounds) -> CheckedCounts:
    """``prompt``, ``completion`` and ``cached`` are whatever the server sent there, ``pieces`` how often it sent text."""
    recounted = []
    if not _is_count(prompt, least=1, most=known.most_prompt):
        recounted.append("prompt_tokens")
        prompt = known.least_prompt
    # A piece has at least one token. llama.cpp's server counts one answer only where it gave several.
    at_least = min(pieces, known.most_completion)
    if not _is_count(completion, least=at_least, most=known.most_completion):
        recounted.append("completion_tokens")
        completion = at_least
    assert isinstance(prompt, int)
    assert isinstance(completion, int)
    kept = cached if isinstance(cached, int) and _is_count(cached, least=0, most=prompt) else 0
    return CheckedCounts(Usage(prompt, completion, kept), tuple(recounted))


def settle_texts(prompt: object, texts: Sequence[str]) -> tuple[int, bool]:
    """The tokens of texts that become vectors, and whether the server's own count was not believed."""
    most = sum(len(text.encode("utf-8", "replace")) + ADDED_TOKENS for text in texts)
    if isinstance(prompt, int) and _is_count(prompt, least=len(texts), most=most):
        return prompt, False
    return sum(max(1, len(text.split())) for text in texts), True


def _is_count(value: object, *, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
