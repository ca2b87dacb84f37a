"""Requests match the gateway's own types, and its responses are parsed."""

import json
import struct
from datetime import UTC, date, datetime
from typing import cast
from uuid import uuid4

import msgspec
import pytest
from aimesh import answers, calls
from aimesh.calls import ApiCall, KeyLimits
from aimesh.errors import BadRequest, ProtocolError
from aimesh.json_fields import JsonFields

from services.gateway.http_api import request_bodies, rest_accounts, rest_format, rest_usage
from services.gateway.http_api.chat_messages import ChatBodyMessage
from services.gateway.http_api.rest_accounts import ApiKeyBody, LoginBody, RegisterBody
from services.gateway.http_api.rest_inference import InferenceBody
from services.gateway.openai_api import chat_format as openai_answers
from services.gateway.openai_api import openai_embeddings
from services.gateway.openai_api.openai_embeddings import EmbeddingBody, EmbeddingList, EmbeddingObject, EmbeddingUsage
from shared.api.gateway import ServedModel
from shared.limits import BY_NAME
from shared.types import FinishReason, KeyId, ModelName, RequestId, Tier, UserId, UserRole


def sent(call: ApiCall[object]) -> bytes:
    assert call.body is not None
    return call.body


# --- requests -------------------------------------------------------------------------------------------------------


def test_prompt_with_every_option() -> None:
    call = calls.inference(
        "grüße 🐘",
        {"model": "m", "system": "s", "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 0, "stop": ["a", "b"], "seed": 7},
        stream=True,
    )
    body = request_bodies.read_either_case(sent(call), InferenceBody)
    assert body == InferenceBody(
        prompt="grüße 🐘", model=ModelName("m"), system="s", max_tokens=1, temperature=0.5, top_p=0.9, top_k=0, stop=("a", "b"), seed=7,
        stream=True,
    )  # fmt: skip
    assert (call.verb, call.path, call.has_idempotency_key) == ("POST", "/api/inference", True)


def test_omitted_and_none_options_are_not_sent() -> None:
    assert sent(calls.inference("hi", {"model": None, "seed": None})) == b'{"prompt":"hi"}'


def test_chat() -> None:
    call = calls.inference(None, {"messages": ({"role": "user", "content": "hi"},), "stop": "x"})
    body = request_bodies.read_either_case(sent(call), InferenceBody)
    assert body.messages == (ChatBodyMessage("user", "hi"),)
    assert (body.prompt, body.stop) == (None, "x")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("nan")}, {"temperature": float("inf")}, {"seed": {1, 2}}, {"system": "half a \ud83d"}, {"stop": object()},
        {"model": b"m"},
    ],
)  # fmt: skip
def test_value_that_json_cannot_encode_is_a_bad_request_before_sending(options: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="cannot be sent as JSON"):
        calls.inference("hi", options)  # type: ignore[arg-type]


def test_texts_to_embed() -> None:
    several = request_bodies.convert(request_bodies.read_object(sent(calls.embed(("a", "b"), "m", 16))), EmbeddingBody)
    assert several == EmbeddingBody(input=("a", "b"), model=ModelName("m"), encoding_format="base64", dimensions=16)
    one = request_bodies.convert(request_bodies.read_object(sent(calls.embed("a", None, None))), EmbeddingBody)
    assert one == EmbeddingBody(input=("a",), encoding_format="base64")


def test_accounts_and_keys() -> None:
    assert request_bodies.read_either_case(sent(calls.register("ann", "ann@example.org", "pw")), RegisterBody) == RegisterBody(
        "ann", "ann@example.org", "pw"
    )
    assert request_bodies.read_either_case(sent(calls.login("ann", "pw")), LoginBody) == LoginBody("pw", username="ann")
    assert request_bodies.read_either_case(sent(calls.login("ann@example.org", "pw")), LoginBody) == LoginBody(
        "pw", email="ann@example.org"
    )
    limits = KeyLimits(requests_per_hour=1, requests_per_minute=2, tokens_per_minute=3, concurrency=4, budget="1.5")
    body = request_bodies.read_either_case(sent(calls.create_key("laptop", limits)), ApiKeyBody)
    assert body == ApiKeyBody(
        name="laptop", requests_per_hour=1, requests_per_minute=2, tokens_per_minute=3, concurrency=4, budget="1.5"
    )  # fmt: skip
    assert request_bodies.read_either_case(sent(calls.create_key("laptop", {})), ApiKeyBody) == ApiKeyBody(name="laptop")


def test_only_repeatable_calls_are_retried() -> None:
    once = {call.path for call in (calls.register("a", "b", "c"), calls.login("a", "b"), calls.create_key("a", {})) if not call.repeatable}
    assert once == {"/api/auth/register", "/api/auth/login", "/api/auth/api-keys"}
    assert all(
        call.repeatable for call in (calls.models(), calls.usage(), calls.quota(), calls.inference("a", {}), calls.embed("a", None, None))
    )


# --- responses ------------------------------------------------------------------------------------------------------


def read(answer: object) -> JsonFields:
    return JsonFields.parse(msgspec.json.encode(answer), "the answer")


REQUEST, USER, KEY, NOW = RequestId(uuid4()), UserId(uuid4()), KeyId(uuid4()), datetime.now(UTC)
ANSWER = rest_format.InferenceAnswer(
    REQUEST, ModelName("m"), FinishReason.LENGTH, rest_format.UsageView(1, 2, 3), 40, "text"
)  # fmt: skip
MADE = rest_accounts.UserAnswer(USER, "ann", "ann@example.org", UserRole.USER, Tier.PRO, is_active=True, created_at=NOW)


def test_answer() -> None:
    expected = answers.Answer("text", "m", answers.Usage(1, 2, 3), "length", str(REQUEST), 40)
    assert calls.inference("x", {}).read(read(ANSWER)) == expected


def listed(name: str, *, only_embeds: bool = False) -> openai_answers.Model:
    return openai_answers.show_model(ServedModel(ModelName(name), 1, 2048, only_embeds=only_embeds), 1)


def test_models() -> None:
    served = openai_answers.Models((listed("a"), listed("b", only_embeds=True)))
    assert calls.models().read(read(served)) == (answers.Model("a", False), answers.Model("b", True))


def test_vectors_in_any_order() -> None:
    rows = [(1.0, -0.5), (0.25, 3.0)]
    body = EmbeddingBody(input=("a", "b"), encoding_format="base64")
    encoded = [openai_embeddings.encode(body, index, struct.pack("<2f", *row)) for index, row in enumerate(rows)]
    made = EmbeddingList(cast("tuple[EmbeddingObject, ...]", tuple(encoded)), ModelName("m"), EmbeddingUsage(9, 9))
    turned = msgspec.structs.replace(made, data=made.data[::-1])
    for one in (made, turned):
        found = calls.embed(["a", "b"], None, None).read(read(one))
        assert (found.vectors, found.model, found.prompt_tokens) == (tuple(rows), "m", 9)
    with pytest.raises(ProtocolError, match="3 texts were sent, but the answer has vectors for 2"):
        calls.embed(["a", "b", "c"], None, None).read(read(made))


def test_usage_and_quota() -> None:
    day = rest_usage.UsageDayAnswer(date(2026, 1, 2), None, 3, 4)
    usage = calls.usage().read(read(rest_usage.UsageAnswer(USER, 3, 4, (day,))))
    assert usage == answers.UsageReport(str(USER), 3, 4, (answers.UsageDay(date(2026, 1, 2), None, 3, 4),))
    limit = rest_usage.LimitAnswer("key", "concurrency", 5, 4, 0.0)
    quota = calls.quota().read(read(rest_usage.QuotaAnswer(USER, Tier.FREE, 100, 1, 99, 12.5, (limit,))))
    assert quota == answers.Quota(str(USER), "free", 100, 1, 99, 12.5, (answers.Limit("key", "concurrency", 5, 4, 0.0),))


def test_user_login_and_key() -> None:
    user = answers.User(str(USER), "ann", "ann@example.org", "user", "pro")
    assert calls.register("a", "b", "c").read(read(MADE)) == user
    logged_in = {"access_token": "hidden", "token_type": "bearer", "expires_in": 600, "session_token": "aip_rt_hidden", "user": MADE}
    for opened in (calls.login("a", "b"), calls.renew("aip_rt_x")):
        session = opened.read(read(logged_in))
        assert session == answers.Session("hidden", 600, user, "aip_rt_hidden")
    key = {
        "id": KEY, "name": "laptop", "preview": "aip_live_…abcd", "created_at": NOW, "requests_per_hour": 1, "requests_per_minute": None,
        "tokens_per_minute": None, "concurrency": 2, "budget": "0.5",
    }  # fmt: skip
    made = calls.create_key("laptop", {}).read(read({"api_key": "aip_live_hidden", "key": key}))
    limits = dict.fromkeys(BY_NAME) | {"requests_per_hour": 1, "concurrency": 2}
    shown = answers.ApiKey(id=str(KEY), name="laptop", preview="aip_live_…abcd", created_at=NOW, budget="0.5", **limits)
    assert made == answers.NewApiKey("aip_live_hidden", shown)
    assert "hidden" not in repr(session) + repr(made)


GOOD: dict[str, tuple[ApiCall[object], object]] = {
    "an answer": (calls.inference("x", {}), ANSWER),
    "models": (calls.models(), openai_answers.Models((listed("a"),))),
    "usage": (calls.usage(), rest_usage.UsageAnswer(USER, 3, 4, (rest_usage.UsageDayAnswer(date(2026, 1, 2), None, 3, 4),))),
    "quota": (calls.quota(), rest_usage.QuotaAnswer(USER, Tier.FREE, 100, 1, 99, 12.5, (rest_usage.LimitAnswer("key", "x", 5, 4, 0.0),))),
    "a user": (calls.register("a", "b", "c"), MADE),
}
#: Missing in answers of other versions, or not needed here.
MAY_BE_ABSENT = {
    "created",
    "owned_by",
    "object",
    "only_embeds",
    "has_more",
    "limits",
    "credits",
    "budget",
    "allowance",
    "api_key_id",
    "is_active",
    "created_at",
}


@pytest.mark.parametrize("name", GOOD)
def test_unknown_field_is_ignored(name: str) -> None:
    call, answer = GOOD[name]
    found = json.loads(msgspec.json.encode(answer))
    assert call.read(JsonFields({**found, "of_next_year": [1]}, "it")) == call.read(JsonFields(found, "it"))


@pytest.mark.parametrize("name", GOOD)
def test_missing_or_mistyped_field_is_named(name: str) -> None:
    call, answer = GOOD[name]
    found = json.loads(msgspec.json.encode(answer))
    for field in set(found) - MAY_BE_ABSENT:
        with pytest.raises(ProtocolError, match=f"it.{field} is missing"):
            call.read(JsonFields({key: value for key, value in found.items() if key != field}, "it"))
        for wrong in (None, object(), True, [1], {"a": 1}):
            with pytest.raises(ProtocolError, match=rf"it\.{field}"):
                call.read(JsonFields({**found, field: wrong}, "it"))
