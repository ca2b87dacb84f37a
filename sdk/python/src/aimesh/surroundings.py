"""What the process gives to every conversation: settings from the environment, the clock, chance, and a pool of connections."""

import ipaddress
import os
import random
import time
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from aimesh import settings
from aimesh.answers import Session
from aimesh.conversations import ProcessContext
from aimesh.logins import SessionLogin
from aimesh.tries import RetryRules

#: What the gateway gives a request, unless it is told otherwise.
DEFAULT_SECONDS = 300.0
DEFAULT_RETRIES = 2
#: The servers close idle connections after 5 s; one that is older must not be used in that very moment.
LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=20, keepalive_expiry=3.0)


def of_process(api_key: str | None, base_url: str | None, max_retries: int, session: Session | None = None) -> ProcessContext:
    """Reads the environment. Raises ValueError that says what to write instead."""
    if session is not None and api_key is not None:
        raise ValueError("give api_key or session, not both")
    if max_retries < 0:
        raise ValueError("max_retries must be 0 or more")
    return ProcessContext(
        settings=settings.read("" if session is not None else api_key, base_url, os.environ),
        patience=RetryRules(max_retries=max_retries),
        clock=time.monotonic,
        draw=random.random,
        make_key=lambda: str(uuid4()),
        login=None if session is None else SessionLogin(session),
    )


def heeds_environment(base_url: str) -> bool:
    """A proxy of HTTP_PROXY leads outside, and would look for this machine there."""
    host = urlsplit(base_url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
