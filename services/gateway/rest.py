"""The /api routes: bodies in camelCase or snake_case, answers in snake_case."""

from datetime import date, datetime
from typing import Protocol

import msgspec

from services.gateway import bodies, http_errors, mesh
from services.gateway.admission import BadField
from services.gateway.http_app import Access, Route
from services.gateway.http_call import HttpCall
from services.gateway.pipeline import Pipeline, Running
from services.gateway.quotas import Quotas
from shared.api import auth
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, Usage
from shared.api.usage import UserUsage
from shared.types import Credential, FinishReason, KeyId, ModelName, RequestId, Tier, UserId, UserRole

_json = msgspec.json.Encoder()


class RegisterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str
    password: str


class LoginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``username`` or ``email``, one of them."""

    password: str
    username: str | None = None
    email: str | None = None


class ApiKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = "default"
    user_id: UserId | None = None
    requests_per_hour: int | None = None


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class PayloadBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to generate from and how; ``prompt`` or ``messages``, one of them."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    #: Answer with server-sent events.
    stream: bool = False


class InferenceBody(PayloadBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelName | None = None


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: An object, or only a prompt.
    payload: PayloadBody | str
    model: ModelName | None = None


class UserAnswer(msgspec.Struct, frozen=True):
    id: UserId
    username: str
    email: str
    role: UserRole
    tier: Tier
    is_active: bool
    created_at: datetime


class SessionAnswer(msgspec.Struct, frozen=True):
    access_token: Credential
    token_type: str
    expires_in: int
    session_token: str
    user: UserAnswer


class ApiKeyView(msgspec.Struct, frozen=True):
    id: KeyId
    user_id: UserId
    name: str
    preview: str
    is_active: bool
    created_at: datetime
    requests_per_hour: int | None


class ApiKeyAnswer(msgspec.Struct, frozen=True):
    """The only answer that ever carries a whole key."""

    api_key: Credential
    key: ApiKeyView


class UsageView(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "UsageView":
        return cls(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


class InferenceAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    request_id: RequestId
    model: ModelName
    finish_reason: FinishReason
    usage: UsageView
    response_time_ms: int
    #: Absent at the end of a stream, whose texts came before.
    response: str | None = None


class TextEvent(msgspec.Struct, frozen=True):
    """A piece of the text of a streamed answer."""

    text: str


class UsageDayAnswer(msgspec.Struct, frozen=True):
    date: date
    api_key_id: KeyId | None
    request_count: int
    tokens_used: int


class UsageAnswer(msgspec.Struct, frozen=True):
    user_id: UserId
    request_count: int
    tokens_used: int
    #: Newest first; at most a year.
    days: tuple[UsageDayAnswer, ...]


class QuotaAnswer(msgspec.Struct, frozen=True):
    user_id: UserId
    tier: Tier
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    resets_in_seconds: float


class UsageReader(Protocol):
    """The part of the store that is used here."""

    async def read_usage(self, user_id: UserId) -> UserUsage: ...


class Rest:
    """The handlers of /api."""

    def __init__(self, pipeline: Pipeline, rpc: mesh.Rpc, usage: UsageReader, quotas: Quotas, *, request_seconds: float) -> None:
        self._pipeline = pipeline
        self._rpc = rpc
        self._usage_of = usage.read_usage
        self._quotas = quotas
        self._request_seconds = request_seconds

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                verb="POST", path="/api/auth/register", access=Access.PUBLIC, handler=self._register, method="registerUser",
                summary="Make an account", body=RegisterBody, answer=UserAnswer, status=201,
            ),
            Route(
                verb="POST", path="/api/auth/login", access=Access.PUBLIC, handler=self._login, method="loginUser",
                summary="Exchange a password for an access token", body=LoginBody, answer=SessionAnswer,
            ),
            Route(
                verb="POST", path="/api/auth/api-keys", access=Access.ACCESS_TOKEN, handler=self._make_key, method="generateApiKey",
                summary="Make an API key; it is shown this once", body=ApiKeyBody, answer=ApiKeyAnswer, status=201,
            ),
            Route(
                verb="POST", path="/api/inference", access=Access.CREDENTIAL, handler=self._inference, method="processInferenceRequest",
                summary="Run a prompt", body=InferenceBody, answer=InferenceAnswer, streams=True,
            ),
            Route(
                verb="POST", path="/api/infer", access=Access.CREDENTIAL, handler=self._infer, method="processInferenceRequest",
                summary="Run a prompt, given as a model and a payload", body=InferBody, answer=InferenceAnswer, streams=True,
            ),
            Route(
                verb="GET", path="/api/usage", access=Access.CREDENTIAL, handler=self._usage, method="readUsage",
                summary="What you used, by day", answer=UsageAnswer,
            ),
            Route(
                verb="GET", path="/api/quota", access=Access.CREDENTIAL, handler=self._quota, method="getUserQuota",
                summary="What you may still use in this hour", answer=QuotaAnswer,
            ),
        )  # fmt: skip

    async def _register(self, call: HttpCall) -> None:
        body = bodies.read_either_case(call.body, RegisterBody)
        user = await self._rpc.call(auth.register_user, auth.RegisterUser(auth.UserData(body.username, body.email, body.password)))
        await call.answer(msgspec.convert(user, UserAnswer, from_attributes=True), status=201)

    async def _login(self, call: HttpCall) -> None:
        body = bodies.read_either_case(call.body, LoginBody)
        credentials = auth.Credentials(body.password, body.username, body.email)
        session = await self._rpc.call(auth.login_user, auth.LoginUser(credentials))
        await call.answer(msgspec.convert(session, SessionAnswer, from_attributes=True))

    async def _make_key(self, call: HttpCall) -> None:
        body = bodies.read_either_case(call.body, ApiKeyBody)
        request = auth.GenerateApiKey(body.name, body.user_id, auth.KeyLimits(requests_per_hour=body.requests_per_hour))
        made = await self._rpc.call(auth.generate_api_key, request, credential=call.credential)
        await call.answer(msgspec.convert(made, ApiKeyAnswer, from_attributes=True), status=201)

    async def _inference(self, call: HttpCall) -> None:
        body = bodies.read_either_case(call.body, InferenceBody)
        await self._run(call, body, body.model)

    async def _infer(self, call: HttpCall) -> None:
        found = bodies.snake_names(bodies.read_object(call.body))
        if isinstance(payload := found.get("payload"), dict):
            found["payload"] = bodies.snake_names(payload)
        body = bodies.convert(found, InferBody)
        payload = PayloadBody(prompt=body.payload) if isinstance(body.payload, str) else body.payload
        await self._run(call, payload, body.model)

    async def _run(self, call: HttpCall, body: PayloadBody, model: ModelName | None) -> None:
        request = to_request(body, model)
        texts: list[str] = []
        async with self._pipeline.run(call.caller, request, seconds=self._request_seconds) as running:
            if running.allowance is not None:
                call.add_headers(http_errors.allowance_headers(running.allowance))
            async for chunk in running:
                if chunk.waiting and body.stream:
                    await call.send_comment(chunk.waiting)
                if not chunk.text:
                    continue
                if body.stream:
                    await call.send_event(_json.encode(TextEvent(chunk.text)))
                else:
                    texts.append(chunk.text)
        if body.stream:
            await call.send_event(_json.encode(_answer(running, None)))
            await call.send_event(b"[DONE]")
            await call.end_events()
        else:
            await call.answer(_answer(running, "".join(texts)))

    async def _usage(self, call: HttpCall) -> None:
        usage = await self._usage_of(call.caller.user_id)
        await call.answer(msgspec.convert(usage, UsageAnswer, from_attributes=True))

    async def _quota(self, call: HttpCall) -> None:
        left = await self._quotas.look(call.caller)
        caller = call.caller
        await call.answer(QuotaAnswer(caller.user_id, caller.tier, left.limit, left.used, left.remaining, left.resets_in_seconds))


def to_request(body: PayloadBody, model: ModelName | None) -> InferenceRequest:
    if body.prompt is not None and body.messages:
        raise BadField("prompt", "and messages exclude each other; give one of them")
    return InferenceRequest(
        prompt=body.prompt,
        messages=tuple(ChatMessage(message.role, message.content) for message in body.messages or ()),
        system=body.system,
        model=model,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
        seed=body.seed,
    )


def _answer(running: Running, response: str | None) -> InferenceAnswer:
    result = running.result
    return InferenceAnswer(
        result.request_id, result.model, result.finish_reason, UsageView.of(result.usage), result.response_time_ms, response
    )
