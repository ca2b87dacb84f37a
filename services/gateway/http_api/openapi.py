"""Builds the OpenAPI document from the route table and the structs that parse and write its bodies.

Serves it, and a reference page without scripts or other hosts.
"""

import base64
import hashlib
import html
from collections.abc import Iterator, Sequence

import msgspec

from services.gateway.http_api import http_errors
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared.access_rules import Audience
from shared.telemetry.version import version

#: Any node of a JSON Schema or OpenAPI document.
Json = dict[str, object]

_REFERENCE = "#/components/schemas/{name}"

_SCHEMES: dict[Audience, list[Json]] = {
    Audience.NODE: [],
    Audience.PERSON: [{"bearer": []}, {"apiKey": []}],
}

#: Sent with every response.
_REQUEST_ID: Json = {"X-Request-Id": {"description": "The id of the request in logs and usage", "schema": {"type": "string"}}}
_ALLOWANCE: Json = {
    name: {"description": what, "schema": {"type": "string"}}
    for name, what in (
        ("X-RateLimit-Limit-Requests", "The tightest limit on requests"),
        ("X-RateLimit-Remaining-Requests", "Requests left within this limit"),
        ("X-RateLimit-Reset-Requests", "Time until the limit is fully available again"),
    )
}
_IGNORED: Json = {"X-Aimesh-Ignored": {"description": "Fields of the body that had no effect", "schema": {"type": "string"}}}
_RETRY_AFTER: Json = {"Retry-After": {"description": "Seconds after which a retry may succeed", "schema": {"type": "integer"}}}

#: Description and headers of each error status.
_ERRORS: dict[int, tuple[str, Json]] = {
    400: ("The request is invalid; `param` names the field if one is at fault", {}),
    401: ("The credential is missing or invalid", {"WWW-Authenticate": {"schema": {"const": "Bearer"}}}),
    402: ("The credits are too low", {}),
    403: ("The credential doesn't allow this", {}),
    404: ("The model doesn't exist", {}),
    409: ("The same Idempotency-Key was used with another body, or the name is taken", {}),
    413: ("The body or the prompt is too large", {}),
    415: ("The body is not plain JSON", {}),
    429: ("A limit is exceeded", {**_RETRY_AFTER, **_ALLOWANCE}),
    503: ("The mesh is full, or a required service is down", _RETRY_AFTER),
    504: ("The request took too long", {}),
}
_OF_EVERYONE, _OF_CALLERS, _OF_BODIES, _OF_MODELS = (503,), (401, 403), (400, 413, 415), (402, 404, 409, 429, 504)

_KEY_HEADER = ("Idempotency-Key", "Repeating a request with the same key never runs or bills it twice")
_REST_HEADER = ("Last-Event-ID", "The id of the last received event of a streamed answer, to get the rest")
#: Required headers by method.
_NEEDED_HEADERS = {"cancelInference": ("Idempotency-Key", "The key of the request to cancel")}

#: Routes that the node adds to every service.
_OPERATIONS = (
    ("/healthz", "Whether the process works, or must be restarted", "application/json"),
    ("/readyz", "Whether the service is ready for requests, or why not", "application/json"),
    ("/dependencies", "What the service depends on: state, since when, reason and last success", "application/json"),
    ("/metrics", "Metrics in the Prometheus format", "text/plain"),
    ("/openapi.json", "This document", "application/json"),
    ("/docs", "The reference as a web page", "text/html"),
)


def document(routes: Sequence[HttpRoute]) -> Json:
    named = ((route.query, route.body, route.form, route.answer, route.pending, *route.events) for route in routes)
    kinds = {kind: None for of_route in named for kind in of_route if kind is not None}
    error_kinds = {http_errors.dialect_at(route.path).error: None for route in routes}
    _, schemas = msgspec.json.schema_components([*kinds, *error_kinds], ref_template=_REFERENCE)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route)
    for path, summary, media_type in _OPERATIONS:
        paths[path] = {"get": _own(path, summary, media_type)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aimesh",
            "version": version(),
            "description": "AI inference on your own machines, OpenAI-compatible.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {_error_name(kind, status): _error(kind, status) for kind in error_kinds for status in _ERRORS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or an access token"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(route: HttpRoute) -> Json:
    operation: Json = {
        "summary": route.summary,
        "operationId": _operation_id(route.verb, route.path),
        "tags": [http_errors.dialect_at(route.path).tag],
        "security": _SCHEMES[route.access.who],
        "responses": _responses(route),
    }
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(route.body)}}}
    if route.form is not None:
        file: Json = {"file": {"type": "string", "contentMediaType": "application/octet-stream"}}
        form: Json = {"allOf": [_ref(route.form)], "type": "object", "properties": file, "required": ["file"]}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    if route.max_raw_bytes:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}
    return operation


def _responses(route: HttpRoute) -> Json:
    headers = {**_REQUEST_ID, **_ALLOWANCE} if route.runs_a_model else _REQUEST_ID
    if route.body is not None and not route.path.startswith("/api/"):
        headers = {**headers, **_IGNORED}
    done: Json = {"description": "Done", "headers": headers}
    if route.answer is not None:
        content: Json = {"application/json": {"schema": _ref(route.answer)}}
        if route.events:
            content[http_errors.dialect_at(route.path).media_type] = {"schema": _event_schema(route)}
        done["content"] = content
    statuses = {
        *_OF_EVERYONE,
        *(_OF_CALLERS if route.access.who is Audience.PERSON else ()),
        *(_OF_BODIES if route.body is not None or route.form is not None or route.max_raw_bytes else ()),
        *((400,) if route.query is not None or route.method in _NEEDED_HEADERS else ()),
        *(_OF_MODELS if route.runs_a_model else ()),
        *((404,) if "{" in route.path else ()),
    }
    kind = http_errors.dialect_at(route.path).error
    errors = {str(status): {"$ref": f"#/components/responses/{_error_name(kind, status)}"} for status in sorted(statuses)}
    other = {"description": "Another error", "content": {"application/json": {"schema": _ref(kind)}}}
    found = {str(route.status): done, **errors, "default": other}
    if route.pending is not None:
        content = {"application/json": {"schema": _ref(route.pending)}}
        found["202"] = {"description": "Not yet: ask again", "headers": {**_REQUEST_ID, **_RETRY_AFTER}, "content": content}
    return found


def _event_schema(route: HttpRoute) -> Json:
    """Describe the events in an extension and in text, because OpenAPI 3.1 can't."""
    names, error = ", ".join(kind.__name__ for kind in route.events), http_errors.dialect_at(route.path).error
    return {
        "type": "string",
        "description": f"If `stream` is true: server-sent events with ids. Their data is one of {names}, or finally an {error.__name__}.",
        "x-event-data": {"oneOf": [*(_ref(kind) for kind in route.events), _ref(error)]},
    }


def _parameters(route: HttpRoute) -> list[Json]:
    found: list[Json] = []
    _, brace, name = route.path.partition("{")
    if brace:
        found.append({"name": name.partition("}")[0], "in": "path", "required": True, "schema": {"type": "string"}})
    if route.query is not None:
        found += [_query_parameter(route.query, field) for field in msgspec.structs.fields(route.query)]
    if route.runs_a_model:
        found.append(_header(*_KEY_HEADER, required=False))
    if route.streams:
        found.append(_header(*_REST_HEADER, required=False))
    if (needed := _NEEDED_HEADERS.get(route.method)) is not None:
        found.append(_header(*needed, required=True))
    return found


def _header(name: str, what: str, *, required: bool) -> Json:
    schema: Json = {"type": "string", "minLength": 1, "maxLength": 255}
    return {"name": name, "in": "header", "description": what, "required": required, "schema": schema}


def _query_parameter(query: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> Json:
    schema, _ = msgspec.json.schema_components([field.type], ref_template=_REFERENCE)
    return {"name": field.encode_name, "in": "query", "required": field.required, "schema": schema[0]}


def _own(path: str, summary: str, media_type: str) -> Json:
    content: Json = {media_type: {"schema": {"type": "object" if media_type == "application/json" else "string"}}}
    responses: Json = {"200": {"description": "Done", "content": content}}
    if path == "/metrics":
        refusal = {"application/json": {"schema": {"type": "object"}}}
        responses["403"] = {"description": "Only allowed from this machine, METRICS_NETWORKS or with the METRICS_TOKEN", "content": refusal}
    return {
        "summary": summary,
        "operationId": _operation_id("get", path),
        "tags": ["operations"],
        "security": [],
        "responses": responses,
    }


def _error(kind: type[msgspec.Struct], status: int) -> Json:
    what, headers = _ERRORS[status]
    return {
        "description": what,
        "headers": {**_REQUEST_ID, **headers},
        "content": {"application/json": {"schema": _ref(kind)}},
    }


def _error_name(kind: type[msgspec.Struct], status: int) -> str:
    return f"{kind.__name__.removesuffix('Body')}{status}"


def _operation_id(verb: str, path: str) -> str:
    words = path.replace("-", "/").replace("_", "/").replace(".", "/").replace("{", "by/").replace("}", "").split("/")
    return verb.lower() + "".join(word.title() for word in words)


def _ref(kind: type[msgspec.Struct]) -> Json:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "h2{border-top:1px solid #ddd;padding-top:1rem;font-size:1.1rem}code{background:#f4f4f4;padding:.1em .3em}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #eee;padding:.3em .6em;text-align:left;vertical-align:top}"
)
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Reference:
    """Serves /openapi.json and /docs about the other routes, both rendered once."""

    def __init__(self, routes: Sequence[HttpRoute]) -> None:
        self._openapi = msgspec.json.encode(document(routes))
        self._page = page(routes).encode()

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("GET", "/openapi.json", self._send_openapi, "openapi", "The OpenAPI document"),
            HttpRoute("GET", "/docs", self._send_page, "docs", "This reference"),
        )  # fmt: skip

    async def _send_openapi(self, call: HttpCall) -> None:
        await call.answer_bytes(self._openapi, b"application/json")

    async def _send_page(self, call: HttpCall) -> None:
        call.add_headers([(b"content-security-policy", _POLICY.encode())])
        await call.answer_bytes(self._page, b"text/html; charset=utf-8")


def _credential_text(route: HttpRoute) -> str:
    row = route.access
    if row.who is Audience.NODE:
        return "No credential."
    scopes = " or ".join(f"<code>{html.escape(scope)}</code>" for scope in sorted(row.needs))
    return f"Credential: API key or access token{f', with {scopes}' if scopes else ''}."


def page(routes: Sequence[HttpRoute]) -> str:
    sections = "".join(_section(route) for route in routes)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>aimesh API</title><style>{_STYLE}</style></head><body>'
        '<h1>aimesh API</h1><p>Machine-readable: <a href="/openapi.json">/openapi.json</a>. Errors are OpenAI error objects; '
        f"each answer has an <code>X-Request-Id</code>.</p>{sections}</body></html>"
    )


def _section(route: HttpRoute) -> str:
    body = _fields("Body", route.body) if route.body is not None else ""
    answer = _fields(f"Response {route.status}", route.answer) if route.answer is not None else ""
    streams = "<p>With <code>stream</code> true, the response is a stream of server-sent events.</p>" if route.streams else ""
    return (
        f"<h2><code>{route.verb} {html.escape(route.path)}</code></h2><p>{html.escape(route.summary)}. "
        f"{_credential_text(route)}</p>{body}{answer}{streams}"
    )


def _fields(title: str, kind: type[msgspec.Struct]) -> str:
    rows = "".join(_rows(kind))
    return f"<h3>{title}</h3><table><tr><th>field</th><th>type</th><th></th></tr>{rows}</table>"


def _rows(kind: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        written = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        short = html.escape(written.replace("typing.", "").replace("services.gateway.", "").replace("shared.types.", ""))
        yield f"<tr><td><code>{field.encode_name}</code></td><td>{short}</td><td>{'required' if field.required else ''}</td></tr>"
