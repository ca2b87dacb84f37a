"""An API of a feature has its own errors, streams and name; those of the core are OpenAI's, Anthropic's and ours."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway.http_api import http_errors, openapi
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_errors import HttpDialect
from services.gateway.http_api.response_formats import AnthropicErrorBody, ErrorBody
from shared import access_table, errors, features
from shared.access_rules import NODE
from shared.types import RequestId

REQUEST = RequestId(UUID(int=5))


class AcmeError(msgspec.Struct, frozen=True):
    problem: str
    status: int


class AcmeAnswer(msgspec.Struct, frozen=True):
    text: str


ACME = HttpDialect(
    prefix="/acme/",
    tag="Acme",
    error=AcmeError,
    write_error=lambda shown, code: AcmeError(shown.error.message, code),
    media_type="text/x-acme",
    missing_hint="see acme.example",
)


@pytest.fixture(autouse=True)
def _with_acme(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(features, "parts", lambda place, *_kind: {"acme": ACME} if place == "gateway.dialect" else {})
    http_errors._dialects.cache_clear()
    yield
    http_errors._dialects.cache_clear()


@pytest.mark.parametrize(
    ("path", "tag", "kind", "out_of_credits"),
    [
        ("/v1/chat/completions", "OpenAI", ErrorBody, 429),
        ("/v1/messages", "OpenAI", AnthropicErrorBody, 402),
        ("/v1/messages/batches", "OpenAI", AnthropicErrorBody, 402),
        ("/v1/messages_of_others", "OpenAI", ErrorBody, 429),
        ("/api/inference", "aimesh", ErrorBody, 402),
        ("/infill", "aimesh", ErrorBody, 402),
        ("", "aimesh", ErrorBody, 402),
        ("/acme/", "Acme", AcmeError, 402),
        ("/acme/a/b", "Acme", AcmeError, 402),
        ("/acme", "aimesh", ErrorBody, 402),
        ("/acmes/a", "aimesh", ErrorBody, 402),
    ],
)
def test_each_path_has_errors_in_one_form(path: str, tag: str, kind: type, out_of_credits: int) -> None:
    dialect, error = http_errors.dialect_at(path), errors.BudgetExhausted("no credits")
    assert (dialect.tag, dialect.error) == (tag, kind)
    assert http_errors.status(error, path) == out_of_credits
    written = dialect.write_error(http_errors.body(error, REQUEST), out_of_credits)
    assert isinstance(written, kind)
    assert b"no credits" in msgspec.json.encode(written)


def test_a_path_without_a_route_is_said_to_be_one_of_the_vendors() -> None:
    missing = http_errors.route_missing("/acme/a/b", "http://gateway", lambda _path: True)
    assert (missing.message, missing.hint) == ("Acme's /a/b does not exist here", "see acme.example")
    assert "/v1/models exists" in http_errors.route_missing("/acmes/v1/models", "http://gateway", "/v1/models".__eq__).message


def test_openapi_has_its_name_its_error_and_the_type_of_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(_call: Any) -> None: ...

    monkeypatch.setattr(access_table, "ROUTES", {"GET /acme/a": NODE})
    route = HttpRoute("GET", "/acme/a", handler, "a", "Say", answer=AcmeAnswer, events=(AcmeAnswer,))
    document: Any = openapi.document([route])
    operation = document["paths"]["/acme/a"]["get"]
    assert operation["tags"] == ["Acme"]
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/x-acme"}
    assert operation["responses"]["503"] == {"$ref": "#/components/responses/AcmeError503"}
    assert document["components"]["responses"]["AcmeError503"]["content"]["application/json"]["schema"]["$ref"].endswith("/AcmeError")
