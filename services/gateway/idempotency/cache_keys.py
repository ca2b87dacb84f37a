"""Which requests may be answered from the response cache, and under which name their answers lie there. Pure.

The same request gives the same answer where nothing is drawn (temperature 0) or where the caller fixed what is drawn (a seed).
No other request is ever answered from the cache, whatever it says.
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import Enum

import msgspec

from shared.api.generation import ChatMessage, Sampling
from shared.api.inference import ModelConfig
from shared.types import TenantId

#: One tag for all of them, so that a cluster keeps answers and their order in one place.
PREFIX = "{gateway:answers}:"

_encoder = msgspec.msgpack.Encoder()


class CacheRequest(Enum):
    """What a caller says about the cache."""

    NOTHING = "nothing"
    #: Also where the cache is only for those who ask for it.
    ON = "on"
    #: An answer that is made now; it may be stored.
    FRESH = "fresh"
    #: Neither from the cache nor into it.
    OFF = "off"


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What a request does with the cache."""

    read: bool
    write: bool

    def __bool__(self) -> bool:
        return self.read or self.write


@dataclass(frozen=True, slots=True)
class CacheQuestion:
    """What an answer depends on."""

    tenant: TenantId
    prompt: str | tuple[ChatMessage, ...]
    #: As the caller gave it, after aliases and limits: without a seed that was drawn for it.
    config: ModelConfig
    #: Of the model's file; empty where it has none to show, or where workers differ.
    digest: str = ""


def read_headers(cache_control: str | None, x_cache: str | None) -> CacheRequest:
    """`Cache-Control: no-store` and `no-cache` as in RFC 9111; `X-Cache: on` or `off`. What is not known says nothing."""
    directives = {directive.strip().lower() for directive in (cache_control or "").split(",")}
    word = (x_cache or "").strip().lower()
    if "no-store" in directives or word == "off":
        return CacheRequest.OFF
    # max-age=0 is what a browser sends for "reload".
    if directives & {"no-cache", "max-age=0"}:
        return CacheRequest.FRESH
    return CacheRequest.ON if word == "on" else CacheRequest.NOTHING


def plan(asked: CacheRequest, sampling: Sampling, *, only_when_asked: bool) -> CacheUse:
    if not is_deterministic(sampling) or asked is CacheRequest.OFF or (only_when_asked and asked is CacheRequest.NOTHING):
        return CacheUse(read=False, write=False)
    return CacheUse(read=asked is not CacheRequest.FRESH, write=True)


def is_deterministic(sampling: Sampling) -> bool:
    return sampling.temperature == 0 or sampling.seed is not None


def name(question: CacheQuestion, secret: str) -> str:
    """Different for every tenant, and says nothing of whose or what it is."""
    said = _encoder.encode((str(question.tenant), question.digest, question.prompt))
    return PREFIX + hmac.new(secret.encode(), b"answer:" + said + canonical(question.config), hashlib.sha256).hexdigest()


def canonical(request: Sampling) -> bytes:
    """The same for equal requests, with every field that they have, in whatever order a caller wrote them."""
    return _encoder.encode(msgspec.structs.replace(request, logit_bias=dict(sorted(request.logit_bias.items()))))
