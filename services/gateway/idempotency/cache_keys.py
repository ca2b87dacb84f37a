"""Decides which requests may use the response cache, and under which key. Pure.

A request is deterministic at temperature 0 or with the caller's seed. Other requests are answered from the cache only if their route
says so.
"""

import hashlib
import hmac
from dataclasses import dataclass, replace
from enum import Enum

import msgspec

from services.gateway.facts.image_digests import without_image_data
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, Sampling
from shared.api.inference import ModelConfig
from shared.types import TenantId

#: One hash tag, so that a cluster keeps all answers and their order on one node.
PREFIX = "{gateway:answers}:"

_encoder = msgspec.msgpack.Encoder()


class CacheRequest(Enum):
    """What the caller's headers say about the cache."""

    NOTHING = "nothing"
    #: Use the cache, even if it is opt-in.
    ON = "on"
    #: Don't read from the cache, but store the answer.
    FRESH = "fresh"
    #: Neither read nor store.
    OFF = "off"


@dataclass(frozen=True, slots=True)
class CacheUse:
    read: bool
    write: bool

    def __bool__(self) -> bool:
        return self.read or self.write


NO_USE = CacheUse(read=False, write=False)


@dataclass(frozen=True, slots=True)
class CacheQuestion:
    """Everything that determines an answer."""

    tenant: TenantId
    prompt: str | tuple[ChatMessage, ...]
    #: After aliases and limits, but without a seed drawn by the gateway.
    config: ModelConfig
    #: Digest of the model file; empty if unknown or if workers differ.
    digest: str = ""
    #: Providers that may have answered it: an external answer is not for callers whose policy forbids the provider.
    external: tuple[str, ...] = ()
    #: Lifetime of the answer; None: as configured for all. A route with a shorter one never gets older answers.
    keep_seconds: int | None = None


def read_headers(cache_control: str | None, x_cache: str | None) -> CacheRequest:
    """Read `Cache-Control: no-store` and `no-cache` as in RFC 9111, and `X-Cache: on` or `off`. Ignore other values."""
    directives = {directive.strip().lower() for directive in (cache_control or "").split(",")}
    word = (x_cache or "").strip().lower()
    if "no-store" in directives or word == "off":
        return CacheRequest.OFF
    # Browsers send max-age=0 to reload.
    if directives & {"no-cache", "max-age=0"}:
        return CacheRequest.FRESH
    return CacheRequest.ON if word == "on" else CacheRequest.NOTHING


def plan(request: CacheRequest, sampling: Sampling, *, only_when_asked: bool, same_requests: bool = False) -> CacheUse:
    """Return how a request may use the cache. ``same_requests``: its route answers equal requests from the cache, deterministic or not,
    unless the caller declines."""
    is_usable = same_requests or (sampling.is_deterministic and not (only_when_asked and request is CacheRequest.NOTHING))
    if not is_usable or request is CacheRequest.OFF:
        return NO_USE
    return CacheUse(read=request is not CacheRequest.FRESH, write=True)


def name(question: CacheQuestion, secret: str) -> str:
    """Return the cache key. It differs for every tenant and reveals neither tenant nor content."""
    if not isinstance(question.prompt, str):
        question = replace(question, prompt=tuple(map(without_image_data, question.prompt)))
    content = _encoder.encode((str(question.tenant), question.digest, question.external, question.keep_seconds, question.prompt))
    return PREFIX + hmac.new(secret.encode(), b"answer:" + content + canonical(question.config), hashlib.sha256).hexdigest()


def canonical(request: Sampling) -> bytes:
    """Serialize every field; equal requests give equal bytes in any order of fields. Images are replaced by their digests."""
    request = msgspec.structs.replace(request, logit_bias=dict(sorted(request.logit_bias.items())))
    if isinstance(request, InferenceRequest):
        request = msgspec.structs.replace(request, messages=tuple(map(without_image_data, request.messages)))
    return _encoder.encode(request)
