"""Every parameter that OpenAI documents is handled in the code as docs/howto/openai-api.md says."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import parameters, tolerant_json
from services.gateway.http_api.tolerant_json import Ignored, ParameterRule
from services.gateway.openai_api import anthropic_request
from services.gateway.openai_api import chat_request as openai_chat
from services.gateway.openai_api import completion_request as openai_completions
from services.gateway.openai_api import response_request as openai_responses
from services.gateway.openai_api.anthropic_request import MessagesBody
from services.gateway.openai_api.chat_request import ChatBody
from services.gateway.openai_api.completion_request import CompletionBody
from services.gateway.openai_api.openai_embeddings import EmbeddingBody
from services.gateway.openai_api.response_request import ResponseBody

PAGE = Path(__file__).parents[4] / "docs/howto/openai-api.md"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<state>[\w ]+) \| ?(?P<says>.*?) ?\|$", re.MULTILINE)

APIS: dict[str, tuple[type[msgspec.Struct], Any, Any]] = {
    "/v1/chat/completions": (ChatBody, parameters.CHAT, chat_create_params.CompletionCreateParamsStreaming),
    "/v1/completions": (CompletionBody, parameters.COMPLETIONS, completion_create_params.CompletionCreateParamsStreaming),
    "/v1/responses": (ResponseBody, parameters.RESPONSES, response_create_params.ResponseCreateParamsStreaming),
    # Anthropic's client is not installed.
    "/v1/messages": (MessagesBody, parameters.MESSAGES, None),
}
READERS = {
    "/v1/chat/completions": (openai_chat.DIALECT, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (openai_completions.DIALECT, {"prompt": "hi"}),
    "/v1/responses": (openai_responses.DIALECT, {"input": "hi"}),
    "/v1/messages": (anthropic_request.DIALECT, {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
}


def documented(params: Any) -> set[str]:
    return {name for base in reversed(params.__mro__) for name in getattr(base, "__annotations__", ())} | set(params.__annotations__)


def state(rule: ParameterRule) -> str:
    if rule.ignored:
        return "ignored"
    accepts_something = any(rule.accepts(value) for value in ("", [], ["text"]))
    return "in part" if accepts_something else "refused"


@pytest.mark.parametrize("api", APIS)
def test_every_parameter_of_openais_client_is_classified(api: str) -> None:
    body, rules, params = APIS[api]
    known = set() if params is None else documented(params)
    assert known - set(body.__struct_fields__) - set(rules) == set()
    assert not set(body.__struct_fields__) & set(rules), "a parameter is both a field and ruled out"


def test_every_parameter_of_embeddings_is_a_field() -> None:
    assert documented(embedding_create_params.EmbeddingCreateParams) <= {*EmbeddingBody.__struct_fields__, *parameters.EMBEDDINGS}


@pytest.mark.parametrize("api", APIS)
def test_the_documentation_matches_the_code(api: str) -> None:
    body, rules, _ = APIS[api]
    section = PAGE.read_text().split(f"\n## {api}\n")[1].split("\n## ")[0]
    rows = {row["name"]: (row["state"], row["says"]) for row in ROW.finditer(section)}
    assert set(rows) == {*body.__struct_fields__, *rules}
    for name, (documented_state, description) in rows.items():
        if name in rules:
            assert (documented_state, description) == (state(rules[name]), rules[name].description), name
        else:
            assert documented_state == "works", name


def read(api: str, more: dict[str, object]) -> Ignored:
    dialect, good = READERS[api]
    ignored = Ignored()
    tolerant_json.read(json.dumps({**good, **more}).encode(), dialect, ignored)
    return ignored


@pytest.mark.parametrize(("api", "name"), [(api, name) for api, (_, rules, _) in APIS.items() for name in rules if name.isidentifier()])
def test_a_rule_applies_to_every_kind_of_value(api: str, name: str) -> None:
    rule = APIS[api][1][name]
    for value in (None, False, True, 0, 1, 1.5, "", "auto", "none", "x" * 9, [], ["text"], {}, {"a": {"b": 1}}):
        if rule.ignored:
            assert read(api, {name: value}).labels == ({} if value is None else {name: name})
        elif value is None or rule.accepts(value):
            assert not read(api, {name: value}).labels
        else:
            with pytest.raises(BadField) as refused:
                read(api, {name: value})
            assert refused.value.field == name
