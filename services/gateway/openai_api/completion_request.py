"""Parses requests to OpenAI's completions API, which continue a text without a chat template. Pure."""

from typing import Annotated

import msgspec
from msgspec import Meta

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import parameters
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.openai_api import chat_request as openai_chat
from services.gateway.openai_api.chat_request import SamplingBody
from shared.api.gateway import InferenceRequest
from shared.api.generation import Answers

#: Each prompt is a separate request; they run one after another within one deadline.
MAX_PROMPTS = 16
#: OpenAI's default, which its clients rely on.
DEFAULT_MAX_TOKENS = 16


class CompletionBody(SamplingBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A completion request."""

    #: Each text gets its own answers. Token ids are refused, because they differ between models.
    prompt: str | tuple[str | int | tuple[int, ...], ...]
    #: Must equal n.
    best_of: Answers | None = None
    #: Repeat the prompt before each answer.
    echo: bool = False
    #: The answer is the text between a prompt and this, by models that were trained to fill gaps.
    suffix: str = ""
    #: Number of likeliest tokens to return at each position.
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Raises BadField for token ids."""
        prompts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        texts = tuple(prompt for prompt in prompts if isinstance(prompt, str))
        if len(texts) < len(prompts):
            raise BadField("prompt", "must be a text or a list of texts; token ids are not supported, because each model has its own")
        return texts


DIALECT = BodyDialect("completions", CompletionBody, parameters.COMPLETIONS)


def to_requests(body: CompletionBody) -> tuple[InferenceRequest, ...]:
    """Return one request for each prompt. Raises BadRequest that names the field."""
    prompts = body.prompts
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise BadField("prompt", f"must have 1 to {MAX_PROMPTS} texts")
    if body.best_of not in {None, body.n or 1}:
        raise BadField("best_of", "must equal n; all answers are returned")
    if body.echo and body.logprobs is not None:
        raise BadField("echo", "and logprobs exclude each other: the engine has no logprobs for the prompt")
    request = openai_chat.sampled_request(body)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if body.suffix and body.echo:
        raise BadField("suffix", "and echo exclude each other")
    return tuple(
        msgspec.structs.replace(request, prompt=prompt, suffix=body.suffix, raw=True, max_tokens=max_tokens, top_logprobs=body.logprobs)
        for prompt in prompts
    )
