"""Decides what a request under an idempotency key gets, from the stored state of the key. Pure."""

import hashlib
import hmac
from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.recording import Piece
from shared import errors
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, Vectors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.inference import Chunk
from shared.errors import Problem
from shared.types import ModelName, NodeId, RequestId, TenantId

End = TypeVar("End", bound=InferenceResult | EmbeddingResult)

#: Stripe's limit.
MAX_KEY_CHARACTERS = 255
FIELD = "Idempotency-Key"


class KeyState(StrEnum):
    RUNNING = "running"
    ENDED = "ended"
    #: Failed after its caller could read some of it.
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentRequest:
    """A request under a key, new or repeated."""

    owner: TenantId
    key: str
    request: InferenceRequest | EmbeddingRequest
    #: The id of this call.
    request_id: RequestId
    #: Seed to use if this call is the first.
    seed: int
    #: The configuration whose guardrails apply if this call is the first; None if no answer of it is ever resumed.
    config_revision: int | None = None
    #: The last chunk that the caller has.
    after: int = 0
    #: Digest of all requests sent together, if this is one of several; see ``digest``.
    together: bytes = b""


@dataclass(frozen=True, slots=True)
class HeldKey:
    """The stored state of a key."""

    fingerprint: bytes
    request_id: RequestId
    state: KeyState
    #: Encrypted; None while it runs, or if it was too long to store.
    answer: bytes | None
    gateway: NodeId


# --- outcomes of a claim ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewKeyUse:
    """This call runs the request for the first time."""

    seed: int
    #: See ``IdempotentRequest``; None: that of this gateway.
    config_revision: int | None = None


@dataclass(frozen=True, slots=True)
class OrphanedKeyUse:
    """This call runs the request in place of a dead gateway."""

    seed: int
    #: The model that the dead gateway used; None if it had not begun, or had the answer from the cache.
    model: ModelName | None = None
    #: The caller has a part of the answer, so only the same answer will do.
    is_resumed: bool = False
    #: The revision that the request began with; None: that of this gateway.
    config_revision: int | None = None


KeyUse = NewKeyUse | OrphanedKeyUse


@dataclass(frozen=True, slots=True)
class EndedRequest:
    request_id: RequestId
    answer: bytes | None


@dataclass(frozen=True, slots=True)
class RunningHere:
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class RunningElsewhere:
    gateway: NodeId
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class AbandonedRequest:
    """An earlier process of this node left the request."""

    request_id: RequestId


ExistingKeyUse = EndedRequest | RunningHere | RunningElsewhere | AbandonedRequest


class KeptAnswer(msgspec.Struct, Generic[Piece, End], frozen=True, array_like=True):
    """A stored answer, with either ``result`` or ``problem``."""

    request_id: RequestId
    model: ModelName | None
    began_at: datetime
    #: None if they were too long to store.
    chunks: tuple[Piece, ...] | None
    result: End | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKind:
    """Properties of a kind of answers."""

    decoder: msgspec.msgpack.Decoder[KeptAnswer[Any, Any]]
    #: A partial answer is billed, so it is stored with the error that ended it.
    counts_in_part: bool
    #: zlib level; 0 for none.
    compression: int


TEXTS: Final = RequestKind(decoder=msgspec.msgpack.Decoder(KeptAnswer[Chunk, InferenceResult]), counts_in_part=True, compression=1)
#: Vectors don't compress.
VECTORS: Final = RequestKind(decoder=msgspec.msgpack.Decoder(KeptAnswer[Vectors, EmbeddingResult]), counts_in_part=False, compression=0)


def kind_of(request: InferenceRequest | EmbeddingRequest) -> RequestKind:
    return VECTORS if isinstance(request, EmbeddingRequest) else TEXTS


def check(key: str) -> None:
    """Raise BadRequest for an invalid key."""
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
        raise BadField(FIELD, f"must have 1 to {MAX_KEY_CHARACTERS} printable ASCII characters")


def part(key: str, number: int) -> str:
    """Return the key of one of several requests sent together. The first keeps the caller's, so that no other request can use that."""
    return f"{prefix_of_parts(key)}{number}" if number else key


def prefix_of_parts(key: str) -> str:
    """Return the prefix of the keys of all parts but the first."""
    return f"{hashlib.sha256(key.encode()).hexdigest()}#"


def is_part(found: str, key: str) -> bool:
    """Return whether it is the key of a request sent under ``key``, alone or with others."""
    return found == key or found.startswith(prefix_of_parts(key))


def digest(requests: Iterable[InferenceRequest]) -> bytes:
    """Return the digest of requests sent together, so that a change in one of them changes all fingerprints."""
    return hashlib.sha256(b"".join(cache_keys.canonical(request) for request in requests)).digest()


def fingerprint(request: InferenceRequest | EmbeddingRequest, secret: str, together: bytes = b"") -> bytes:
    """Return the same value for the same request through any API."""
    if isinstance(request, EmbeddingRequest):
        content = b"idempotency of embeddings:" + msgspec.msgpack.encode(request)
    else:
        content = b"idempotency:" + cache_keys.canonical(request) + together
    return hmac.new(secret.encode(), content, hashlib.sha256).digest()


def classify(held: HeldKey, fingerprint: bytes, *, node: NodeId, own_requests: Container[RequestId]) -> ExistingKeyUse:
    """Judge a held key. ``own_requests``: the requests of this process. Raises IdempotencyConflict."""
    if not hmac.compare_digest(held.fingerprint, fingerprint):
        raise errors.IdempotencyConflict(
            "this idempotency key was used for another request", hint="use a new key for each request, and repeat requests unchanged"
        )
    if held.state is not KeyState.RUNNING:
        return EndedRequest(held.request_id, held.answer)
    if held.request_id in own_requests:
        return RunningHere(held.request_id)
    return AbandonedRequest(held.request_id) if held.gateway == node else RunningElsewhere(held.gateway, held.request_id)


def ensure_can_resume(found: KeyUse, request: IdempotentRequest) -> None:
    """Raise AnswerGone if a new answer might not match what the caller already has."""
    if not request.after:
        return
    if isinstance(found, NewKeyUse):
        raise errors.AnswerGone("the answer to resume is no longer stored", hint="send the request again with a new idempotency key")
    if isinstance(request.request, InferenceRequest) and (request.request.n or 1) > 1:
        raise errors.AnswerGone(
            "the gateway that ran this request is gone, and several answers can't be resumed in the same order",
            hint="send the request again without Last-Event-ID",
        )
