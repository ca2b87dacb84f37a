"""The settings of web."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from shared import errors, node
from shared.config import Variable

#: 256 bits in base64 or hex are at least this long; anything shorter was typed by hand.
MIN_SECRET_CHARACTERS = 32


class WebSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[int, Variable("WEB_SERVICE_PORT", "the port of the pages and of everything passed through to the gateway")] = 3000
    secret: Annotated[str, Variable("WEB_SECRET", "signs form tokens; 32 random characters or more, the same on all replicas", secret=True)]
    gateway_url: Annotated[str, Variable("GATEWAY_URL", "where the gateway's HTTP is; /api, /v1 and /docs are passed on to it")] = (
        "http://127.0.0.1:3002"
    )
    gateway_ca_file: Annotated[
        Path | None,
        Variable("GATEWAY_CA_FILE", "who vouches for the gateway's certificate, where GATEWAY_URL is https and no public authority does"),
    ] = None
    public_url: Annotated[str, Variable("PUBLIC_URL", "the address people use, where a proxy is before web")] = ""
    password_min_length: Annotated[int, Variable("PASSWORD_MIN_LENGTH", "how long a password must be, at least")] = 8

    def __post_init__(self) -> None:
        mistakes = []
        if len(self.secret) < MIN_SECRET_CHARACTERS:
            mistakes.append(f"WEB_SECRET is shorter than {MIN_SECRET_CHARACTERS} characters; make one with `openssl rand -hex 32`")
        if not _is_origin(self.gateway_url):
            mistakes.append(f"GATEWAY_URL: {self.gateway_url!r} is not an address without a path, like http://127.0.0.1:3002")
        if self.public_url and not _is_origin(self.public_url):
            mistakes.append(f"PUBLIC_URL: {self.public_url!r} is not an address without a path, like https://ai.example.org")
        if mistakes:
            raise errors.BadSettings("the settings cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port is what finds a wrong one.
        _ = parts.port
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/") and plain
