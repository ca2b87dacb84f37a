"""Where the platform is and who asks: what a client is told, else the environment.  Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

#: Of `make up` on the same machine: pages, REST and /v1 on one port.
DEFAULT_BASE_URL = "http://127.0.0.1:3000"


@dataclass(frozen=True, slots=True)
class ClientOptions:
    base_url: str
    #: Not in its repr, which ends up in logs.
    api_key: str | None = field(repr=False)


def read(api_key: str | None, base_url: str | None, environment: Mapping[str, str]) -> ClientOptions:
    """Raises ValueError that says what to write instead."""
    key = (environment.get("AIMESH_API_KEY") if api_key is None else api_key) or ""
    url = (environment.get("AIMESH_BASE_URL") if base_url is None else base_url) or DEFAULT_BASE_URL
    return ClientOptions(_checked_url(url.strip()), _checked_key(key.strip()))


def _checked_url(url: str) -> str:
    """Without a slash at its end, and without the /v1 that OpenAI's clients want."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"base_url is no address: {error}; write it like {DEFAULT_BASE_URL}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError(f"base_url must begin with http:// or https:// and name a host, like {DEFAULT_BASE_URL}")
    if "@" in parts.netloc:
        raise ValueError("base_url must have no user and password; give the key as api_key")
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"base_url must be an address alone, like {DEFAULT_BASE_URL}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _checked_key(key: str) -> str | None:
    if not key.isascii() or not key.isprintable() or " " in key:
        # Never with the key itself: this goes to a terminal, or to a log.
        raise ValueError("api_key has characters that no key has; copy it again, it begins with aip_")
    return key or None
