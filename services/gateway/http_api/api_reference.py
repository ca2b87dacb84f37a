"""Serves the OpenAPI document of the route table, and a reference page without scripts or other hosts."""

import base64
import hashlib
import html
from collections.abc import Iterator, Sequence

import msgspec

from services.gateway.http_api import openapi
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared.access.access_table import Audience

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "h2{border-top:1px solid #ddd;padding-top:1rem;font-size:1.1rem}code{background:#f4f4f4;padding:.1em .3em}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #eee;padding:.3em .6em;text-align:left;vertical-align:top}"
)
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Reference:
    """Serves /openapi.json and /docs, both rendered once."""

    def __init__(self, routes: Sequence[HttpRoute]) -> None:
        self._openapi = msgspec.json.encode(openapi.document(routes))
        self._page = page(routes).encode()

    @staticmethod
    def routes_for(routes: Sequence[HttpRoute]) -> tuple[HttpRoute, ...]:
        reference = Reference(routes)
        return (
            HttpRoute(
                verb="GET", path="/openapi.json", handler=reference._send_openapi, method="openapi",
                summary="The OpenAPI document",
            ),
            HttpRoute(
                verb="GET", path="/docs", handler=reference._send_page, method="docs", summary="This reference",
            ),
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
    """Render the reference as HTML."""
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
