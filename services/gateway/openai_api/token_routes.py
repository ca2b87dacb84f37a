"""Serves POST /v1/tokenize, /v1/detokenize and /v1/apply-template, in the forms of vLLM and llama.cpp's server."""

from array import array
from typing import Annotated

import msgspec
from msgspec import Meta

from services.gateway.http_api import answer_delivery, chat_messages, parameters
from services.gateway.http_api.chat_messages import ChatBodyMessage, ToolBody
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.request_validation import MAX_MODEL_CHARACTERS, BadField
from services.gateway.requests.active_texts import ActiveConversion
from services.gateway.requests.pipeline import Pipeline
from shared.api.generation import ChatMessage, TokenId
from shared.api.inference import TOKEN_BYTES, Conversion, Detokenize, RenderChat, Tokenize
from shared.types import ModelName

#: Empty for the default model.
NamedModel = Annotated[ModelName, Meta(max_length=MAX_MODEL_CHARACTERS)]


class TemplateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat to render."""

    model: NamedModel = ModelName("")
    messages: tuple[ChatBodyMessage, ...]
    tools: tuple[ToolBody, ...] = ()
    #: End with the beginning of the model's answer.
    add_generation_prompt: bool = True


class TokenizeBody(TemplateBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text or a chat to tokenize."""

    #: Either this, in which special tokens count, or messages.
    prompt: str | None = None
    messages: tuple[ChatBodyMessage, ...] = ()
    #: Begin with the model's first token, as prompts do.
    add_special_tokens: bool = True


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: NamedModel = ModelName("")
    tokens: tuple[TokenId, ...]


_TEMPLATE = BodyDialect("template", TemplateBody, parameters.CHAT)
_TOKENIZE = BodyDialect("tokenize", TokenizeBody, parameters.CHAT)
_DETOKENIZE = BodyDialect("detokenize", DetokenizeBody)


class TokenList(msgspec.Struct, frozen=True):
    count: int
    #: The model's context; 0 if unknown.
    max_model_len: int
    tokens: list[int]


class PromptText(msgspec.Struct, frozen=True):
    prompt: str


class TokenRoutes:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/v1/tokenize", self._tokenize, "tokenize", "The tokens of a text or chat",
                      body=TokenizeBody, answer=TokenList, runs_a_model=True),
            HttpRoute("POST", "/v1/detokenize", self._detokenize, "detokenize", "The text of tokens",
                      body=DetokenizeBody, answer=PromptText, runs_a_model=True),
            HttpRoute("POST", "/v1/apply-template", self._apply_template, "renderChat", "A chat as the model reads it",
                      body=TemplateBody, answer=PromptText, runs_a_model=True),
        )  # fmt: skip

    async def _tokenize(self, call: HttpCall) -> None:
        running, content = await self._convert(call, to_tokenize(call.read(_TOKENIZE)))
        ids = array("i", content[: len(content) // TOKEN_BYTES * TOKEN_BYTES])
        await call.answer(TokenList(len(ids), running.context_tokens, ids.tolist()))

    async def _detokenize(self, call: HttpCall) -> None:
        body = call.read(_DETOKENIZE)
        await self._answer_text(call, Detokenize(body.model, array("i", body.tokens).tobytes()))

    async def _apply_template(self, call: HttpCall) -> None:
        await self._answer_text(call, to_render(call.read(_TEMPLATE)))

    async def _answer_text(self, call: HttpCall, request: Conversion) -> None:
        _, content = await self._convert(call, request)
        await call.answer(PromptText(content.decode("utf-8", "replace")))

    async def _convert(self, call: HttpCall, request: Conversion) -> tuple[ActiveConversion, bytes]:
        call.refuse_idempotency_key()
        conversion = self._pipeline.convert(
            call.caller, request, seconds=self._pipeline.most_seconds, forbids_external=call.forbids_external
        )
        async with conversion as running:
            call.add_headers(answer_delivery.headers(running))
            return running, await running.read()


def to_render(body: TemplateBody) -> RenderChat:
    """Convert the request. Raises BadField."""
    tools, _ = chat_messages.chosen_tools(body.tools, None)
    return RenderChat(body.model, chat_messages.to_messages(body.messages), tools, body.add_generation_prompt)


def to_tokenize(body: TokenizeBody) -> Tokenize:
    """Convert the request. Raises BadField."""
    with_special = body.add_special_tokens
    if body.prompt is None:
        chat = to_render(body)
        return Tokenize(chat.model, chat.messages, chat.tools, chat.add_generation_prompt, add_special_tokens=with_special)
    if body.messages or body.tools:
        raise BadField("prompt", "and messages exclude each other; send only one")
    return Tokenize(body.model, (ChatMessage("user", body.prompt),), raw=True, add_special_tokens=with_special)
