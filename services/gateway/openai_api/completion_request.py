"""Parses requests to OpenAI's completions API, which continue a text without a chat template. Pure."""

import msgspec

from services.gateway.admission.prompt_admission import BadField
from services.gateway.http_api import request_bodies
from services.gateway.openai_api import chat_request as openai_chat
from services.gateway.openai_api import parameters as openai_parameters
from services.gateway.openai_api.chat_request import StreamOptions
from shared.api.gateway import InferenceRequest
from shared.types import ModelName

#: Each prompt is a separate request; they run one after another within one deadline.
MAX_PROMPTS = 16
#: OpenAI's default, which its clients rely on.
DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5


class CompletionBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A completion request. ``user`` is also accepted, and ignored."""

    #: Each text gets its own answers. Token ids aren't supported, because they differ between models.
    prompt: str | tuple[str, ...]
    model: ModelName | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    #: Logit bias by token id.
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    #: Must equal n.
    best_of: int | None = None
    #: Repeat the prompt before each answer.
    echo: bool = False
    #: Number of likeliest tokens to return at each position.
    logprobs: int | None = None
    #: The next five are extensions of local engines, not OpenAI's.
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    ignore_eos: bool = False
    #: GBNF.
    grammar: str | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def read(content: bytes) -> CompletionBody:
    """Parse the body. Raises BadRequest that names the field."""
    found = openai_parameters.without(request_bodies.read_object(content), openai_parameters.COMPLETIONS, CompletionBody)
    if isinstance(prompts := found.get("prompt"), list) and any(isinstance(prompt, int | list) for prompt in prompts):
        raise BadField("prompt", "must be a text or a list of texts; token ids are not supported, because each model has its own")
    body = request_bodies.convert(found, CompletionBody)
    if not 0 < len(body.prompts) <= MAX_PROMPTS:
        raise BadField("prompt", f"must have 1 to {MAX_PROMPTS} texts")
    if body.best_of not in {None, body.n or 1}:
        raise BadField("best_of", "must equal n; all answers are returned")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise BadField("logprobs", f"must be a whole number from 0 to {MAX_LOGPROBS}")
    if body.echo and body.logprobs is not None:
        raise BadField("echo", "and logprobs exclude each other: the engine has no logprobs for the prompt")
    if body.stream_options is not None and not body.stream:
        raise BadField("stream_options", "requires stream=true")
    return body


def to_requests(body: CompletionBody) -> tuple[InferenceRequest, ...]:
    """Return one request for each prompt. Raises BadRequest that names the field."""
    request = InferenceRequest(
        raw=True,
        model=body.model,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=openai_chat.stops(body.stop),
        seed=body.seed,
        min_p=body.min_p,
        repeat_penalty=body.repeat_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=openai_chat.biases(body.logit_bias),
        ignore_eos=body.ignore_eos,
        n=body.n,
        top_logprobs=body.logprobs,
        format=openai_chat.gbnf(body.grammar),
    )
    return tuple(msgspec.structs.replace(request, prompt=prompt) for prompt in body.prompts)
