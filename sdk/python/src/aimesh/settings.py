"""Read a client's settings: arguments first, then the environment.  Raises ValueError with what to write instead."""

import ipaddress
import os
import random
import time
from collections.abc import Mapping
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from aimesh.answers import Session
from aimesh.conversations import ClientContext
from aimesh.logins import SessionLogin
from aimesh.retry_policy import RetryRules

#: The address of `make up` on this machine: pages, REST and /v1 on one port.
DEFAULT_BASE_URL = "http://127.0.0.1:3000"
#: The gateway's own default for a request.
DEFAULT_SECONDS = 300.0
DEFAULT_RETRIES = 2
#: The servers close idle connections after 5 s, so connections older than 3 s are not reused.
CONNECTION_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=20, keepalive_expiry=3.0)


def create_context(api_key: str | None, base_url: str | None, max_retries: int, session: Session | None = None) -> ClientContext:
    if session is not None and api_key is not None:
        raise ValueError("give api_key or session, not both")
    if max_retries < 0:
        raise ValueError("max_retries must be 0 or more")
    return ClientContext(
        base_url=read_base_url(base_url, os.environ),
        api_key=None if session is not None else read_api_key(api_key, os.environ),
        retry_rules=RetryRules(max_retries=max_retries),
        clock=time.monotonic,
        draw=random.random,
        make_key=lambda: str(uuid4()),
        login=None if session is None else SessionLogin(session),
    )


def uses_proxy_settings(base_url: str) -> bool:
    """Return False for this machine: the proxy in HTTP_PROXY cannot reach it."""
    host = urlsplit(base_url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def read_base_url(base_url: str | None, environment: Mapping[str, str]) -> str:
    """Return it without a trailing slash and without the /v1 that OpenAI's clients need."""
    url = ((environment.get("AIMESH_BASE_URL") if base_url is None else base_url) or DEFAULT_BASE_URL).strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"base_url is not a valid URL: {error}. Write it like {DEFAULT_BASE_URL}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError(f"base_url must begin with http:// or https:// and name a host, like {DEFAULT_BASE_URL}")
    if "@" in parts.netloc:
        raise ValueError("base_url must not contain a user or password; pass the key as api_key")
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"base_url must not have a query, a fragment or special characters; write it like {DEFAULT_BASE_URL}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def read_api_key(api_key: str | None, environment: Mapping[str, str]) -> str | None:
    key = ((environment.get("AIMESH_API_KEY") if api_key is None else api_key) or "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        # The message ends up in terminals and logs, so it must not contain the key.
        raise ValueError("api_key has characters that no key has; copy it again, it begins with aip_")
    return key or None
