"""Serves POST /v1/tokenize, /v1/detokenize and /v1/apply-template, in the forms of vLLM and llama.cpp's server, and the counts of
Anthropic's messages and OpenAI's responses."""

from array import array
from typing import Annotated

import msgspec
from msgspec.structs import replace

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import chat_messages, parameters
from services.gateway.http_api.answer_delivery import HeadReader
from services.gateway.http_api.chat_messages import OF_TOOLS, ChatBodyMessage, ToolBody
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.openai_api import anthropic_request, response_references, response_request
from services.gateway.openai_api.anthropic_request import CountTokensBody
from services.gateway.openai_api.response_request import ResponseBody
from services.gateway.requests import image_tokens, request_validation
from services.gateway.requests.runs import Runs
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, NamedModel, TokenId
from shared.api.inference import TOKEN_BYTES, Conversion, Detokenize, RenderChat, Tokenize
from shared.types import ModelName


class TemplateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat to render."""

    #: None: the default model.
    model: NamedModel | None = None
    messages: tuple[ChatBodyMessage, ...]
    tools: Annotated[tuple[ToolBody, ...], OF_TOOLS] = ()
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
    #: None: the default model.
    model: NamedModel | None = None
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


class MessageTokens(msgspec.Struct, frozen=True):
    input_tokens: int


class ResponseTokens(MessageTokens, frozen=True):
    object: str = "response.input_tokens"


class TokenRoutes:
    def __init__(self, runs: Runs, items: StoredItems) -> None:
        self._runs = runs
        self._items = items

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/v1/tokenize", self._tokenize, "tokenize", "The tokens of a text or chat",
                      body=TokenizeBody, answer=TokenList, runs_a_model=True, takes_prompts=True),
            HttpRoute("POST", "/v1/detokenize", self._detokenize, "detokenize", "The text of tokens",
                      body=DetokenizeBody, answer=PromptText, runs_a_model=True, takes_prompts=True),
            HttpRoute("POST", "/v1/apply-template", self._apply_template, "renderChat", "A chat as the model reads it",
                      body=TemplateBody, answer=PromptText, runs_a_model=True, takes_prompts=True),
            HttpRoute("POST", "/v1/messages/count_tokens", self._count_messages, "tokenize", "The number of tokens of Anthropic's messages",
                      body=CountTokensBody, answer=MessageTokens, runs_a_model=True, takes_prompts=True),
            HttpRoute("POST", "/v1/responses/input_tokens", self._count_response, "tokenize", "The number of tokens of a response's input",
                      body=ResponseBody, answer=ResponseTokens, runs_a_model=True, takes_prompts=True),
        )  # fmt: skip

    async def _tokenize(self, call: HttpCall) -> None:
        content, context_tokens = await self._convert(call, await call.convert(to_tokenize, await call.read(_TOKENIZE)))
        ids = array("i", content[: len(content) // TOKEN_BYTES * TOKEN_BYTES])
        await call.answer(TokenList(len(ids), context_tokens, ids.tolist()))

    async def _detokenize(self, call: HttpCall) -> None:
        body = await call.read(_DETOKENIZE)
        await self._answer_text(call, Detokenize(body.model or ModelName(""), array("i", body.tokens).tobytes()))

    async def _apply_template(self, call: HttpCall) -> None:
        await self._answer_text(call, await call.convert(to_render, await call.read(_TEMPLATE)))

    async def _count_messages(self, call: HttpCall) -> None:
        body = await call.read(anthropic_request.COUNT_DIALECT)
        await call.answer(MessageTokens(await self._count(call, await call.convert(anthropic_request.to_request, body))))

    async def _count_response(self, call: HttpCall) -> None:
        body = await response_references.read(call, self._items)
        await call.answer(ResponseTokens(await self._count(call, await call.convert(response_request.to_request, body))))

    async def _count(self, call: HttpCall, asked: InferenceRequest) -> int:
        asked = await self._runs.admit_images(asked, call.images)
        estimate = request_validation.admit(asked).likely_prompt_tokens
        # Only an answer counts images exactly.
        texts = tuple(replace(one, content=one.content or "image", images=()) if one.images else one for one in asked.messages)
        call.refuse_idempotency_key()
        counted = await self._runs.count_tokens(
            call.caller,
            Tokenize(asked.model or ModelName(""), texts, asked.tools),
            HeadReader(call),
            seconds=self._runs.most_seconds,
            forbids_external=call.forbids_external,
        )
        images = sum(image_tokens.likely_tokens(image) for message in asked.messages for image in message.images)
        return estimate if counted is None else counted + images

    async def _answer_text(self, call: HttpCall, request: Conversion) -> None:
        content, _ = await self._convert(call, request)
        await call.answer(PromptText(content.decode("utf-8", "replace")))

    async def _convert(self, call: HttpCall, request: Conversion) -> tuple[bytes, int]:
        call.refuse_idempotency_key()
        return await self._runs.convert(
            call.caller, request, HeadReader(call), seconds=self._runs.most_seconds, forbids_external=call.forbids_external
        )


def to_render(body: TemplateBody) -> RenderChat:
    """Convert the request. Raises BadField."""
    tools, _ = chat_messages.chosen_tools(body.tools, None)
    return RenderChat(body.model or ModelName(""), chat_messages.to_messages(body.messages), tools, body.add_generation_prompt)


def to_tokenize(body: TokenizeBody) -> Tokenize:
    """Convert the request. Raises BadField."""
    with_special = body.add_special_tokens
    if body.prompt is None:
        chat = to_render(body)
        return Tokenize(chat.model, chat.messages, chat.tools, chat.add_generation_prompt, add_special_tokens=with_special)
    if body.messages or body.tools:
        raise BadField("prompt", "and messages exclude each other; send only one")
    return Tokenize(body.model or ModelName(""), (ChatMessage("user", body.prompt),), raw=True, add_special_tokens=with_special)
