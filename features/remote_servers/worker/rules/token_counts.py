"""Checks another server's token counts, and replaces impossible ones.  Pure.

The replacement is a lower bound that this worker counted itself: the words of the prompt, or the pieces of the answer. The log
names the replaced counts (`usage_recounted`).
"""

from collections.abc import Sequence

import msgspec

from features.remote_servers.worker.rules.event_stream import convert_or
from services.inference.jobs import GenerationJob
from shared.api import embedding
from shared.api.embedding import EmbeddingInput
from shared.api.generation import Usage

#: Tokens that a server may add to a prompt: its own instructions and the template.
HIDDEN_PROMPT_TOKENS = 32_768
#: Tokens that an embedding model may add around a text.
ADDED_TOKENS = 4
MAX_ANSWER_TOKENS = 10_000_000


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


def settle(
    reported: ReportedUsage, job: GenerationJob, *, pieces: int, thoughts: int, sent_bytes: int, max_tokens: int
) -> tuple[Usage, tuple[str, ...]]:
    """Return the checked counts, and the names of those that were replaced. ``pieces`` is the number of times that the server sent text,
    and ``thoughts`` of those with thoughts."""
    recounted = []
    # A token covers at least one byte of the request, or is hidden.
    prompt = _plausible(reported.prompt_tokens, least=1, most=sent_bytes + HIDDEN_PROMPT_TOKENS)
    if prompt is None:
        recounted.append("prompt_tokens")
        # No tokenizer in use joins two words into one token.
        prompt = max(1, sum(len(message.content.split()) for message in job.messages))
    # No one pays for more than was requested, plus one end token per answer, which some servers count.
    most = (job.requested.n or 1) * (min(max_tokens, MAX_ANSWER_TOKENS) + 1)
    # A piece has at least one token. Of several answers, llama.cpp's server only counts one.
    completion = _plausible(reported.completion_tokens, least=min(pieces, most), most=most)
    if completion is None:
        recounted.append("completion_tokens")
        completion = min(pieces, most)
    cached = _plausible(reported.cached_tokens, least=0, most=prompt) or 0
    reasoning = _plausible(reported.reasoning_tokens, least=0, most=completion)
    return Usage(prompt, completion, cached, min(thoughts, completion) if reasoning is None else reasoning), tuple(recounted)


def settle_texts(prompt: object, texts: Sequence[EmbeddingInput]) -> tuple[int, bool]:
    """Return the token count of embedded texts, and whether the server's count was replaced."""
    most = sum(embedding.input_bytes(text) + ADDED_TOKENS for text in texts)
    if (counted := _plausible(prompt, least=len(texts), most=most)) is not None:
        return counted, False
    return sum(max(1, len(text.split() if isinstance(text, str) else text)) for text in texts), True


def _plausible(value: object, *, least: int, most: int) -> int | None:
    return value if type(value) is int and least <= value <= most else None
