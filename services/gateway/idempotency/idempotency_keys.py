"""What a repeat of a request under its idempotency key gets, by what is known of the key. Pure."""

import hashlib
import hmac
from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

import msgspec

from services.gateway.admission.prompt_admission import BadField
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.answer_buffer import Piece
from shared import errors
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, Vectors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.inference import Chunk
from shared.errors import Problem
from shared.types import ModelName, NodeId, RequestId, TenantId

End = TypeVar("End", bound=InferenceResult | EmbeddingResult)

#: As Stripe's.
MAX_KEY_CHARACTERS = 255
FIELD = "Idempotency-Key"


class KeyState(StrEnum):
    RUNNING = "running"
    ENDED = "ended"
    #: With an error, after its caller could see text.
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentRequest:
    """A request as its caller asks it, perhaps not for the first time."""

    owner: TenantId
    key: str
    request: InferenceRequest | EmbeddingRequest
    #: Of this very call.
    request_id: RequestId
    #: What is drawn with, if this call is the first.
    seed: int
    #: The last chunk that the caller has.
    after: int = 0
    #: Of all requests that were sent as one, where this is one of several; see ``digest``.
    together: bytes = b""


@dataclass(frozen=True, slots=True)
class HeldKey:
    """What is known of a key."""

    fingerprint: bytes
    request_id: RequestId
    state: KeyState
    #: Sealed; None while it runs, and where it was too long to be kept.
    answer: bytes | None
    gateway: NodeId


# --- what a claim comes to ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewKeyUse:
    """This call is the one that runs the request, as the first."""

    seed: int


@dataclass(frozen=True, slots=True)
class Orphaned:
    """This call is the one that runs the request, in place of one whose gateway has gone."""

    seed: int


@dataclass(frozen=True, slots=True)
class KeyExpired:
    """It was answered."""

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
class LeftBehind:
    """This node's own, of a process that is no more."""

    request_id: RequestId


Found = KeyExpired | RunningHere | RunningElsewhere | LeftBehind


class KeptAnswer(msgspec.Struct, Generic[Piece, End], frozen=True, array_like=True):
    """An answer as it is stored. One of ``result`` and ``problem`` is there."""

    request_id: RequestId
    model: ModelName | None
    began_at: datetime
    #: None where they were too long to be kept.
    chunks: tuple[Piece, ...] | None
    result: End | None = None
    problem: Problem | None = None

    @property
    def allowance(self) -> None:
        """It uses nothing of the limits."""

    @property
    def clamped_to(self) -> None:
        """Only the first answer says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKind:
    """What answers of one kind have of their own."""

    decoder: msgspec.msgpack.Decoder[KeptAnswer[Any, Any]]
    #: A part of one is paid for, so it is an answer too, and a failure behind it is its end.
    counts_in_part: bool
    #: How hard to look for what can be left out of it; 0 for not at all.
    compression: int


TEXTS: Final = RequestKind(decoder=msgspec.msgpack.Decoder(KeptAnswer[Chunk, InferenceResult]), counts_in_part=True, compression=1)
#: Their numbers are as good as random: nothing of them can be left out.
VECTORS: Final = RequestKind(decoder=msgspec.msgpack.Decoder(KeptAnswer[Vectors, EmbeddingResult]), counts_in_part=False, compression=0)


def kind_of(request: InferenceRequest | EmbeddingRequest) -> RequestKind:
    """Of its answer."""
    return VECTORS if isinstance(request, EmbeddingRequest) else TEXTS


def check(key: str) -> None:
    """Raises BadRequest that names the header."""
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
        raise BadField(FIELD, f"must have 1 to {MAX_KEY_CHARACTERS} printable ASCII characters")


def part(key: str, number: int) -> str:
    """The key of one of several requests that were sent as one. The first has the caller's own, so that no other request ever has it."""
    return f"{prefix_of_parts(key)}{number}" if number else key


def prefix_of_parts(key: str) -> str:
    """What the keys of all parts but the first begin with."""
    return f"{hashlib.sha256(key.encode()).hexdigest()}#"


def is_part(found: str, key: str) -> bool:
    """Whether it is the key of a request that was sent under ``key``, alone or with others."""
    return found == key or found.startswith(prefix_of_parts(key))


def digest(requests: Iterable[InferenceRequest]) -> bytes:
    """Of requests that were sent as one: another one among them makes all of them others."""
    return hashlib.sha256(b"".join(cache_keys.canonical(request) for request in requests)).digest()


def fingerprint(request: InferenceRequest | EmbeddingRequest, secret: str, together: bytes = b"") -> bytes:
    """The same for the same request, whatever way it came in."""
    if isinstance(request, EmbeddingRequest):
        said = b"idempotency of embeddings:" + msgspec.msgpack.encode(request)
    else:
        said = b"idempotency:" + cache_keys.canonical(request) + together
    return hmac.new(secret.encode(), said, hashlib.sha256).digest()


def judge(held: HeldKey, wanted: bytes, *, node: NodeId, ours: Container[RequestId]) -> Found:
    """``ours``: the requests that this process runs. Raises IdempotencyConflict."""
    if not hmac.compare_digest(held.fingerprint, wanted):
        raise errors.IdempotencyConflict(
            "this idempotency key was used for another request", hint="make a new key for each request; repeat a request unchanged"
        )
    if held.state is not KeyState.RUNNING:
        return KeyExpired(held.request_id, held.answer)
    if held.request_id in ours:
        return RunningHere(held.request_id)
    return LeftBehind(held.request_id) if held.gateway == node else RunningElsewhere(held.gateway, held.request_id)


def ensure_can_go_on(found: NewKeyUse | Orphaned, asked: IdempotentRequest) -> None:
    """Raises AnswerGone where what the caller has and what would be made now need not fit together."""
    if not asked.after:
        return
    if isinstance(found, NewKeyUse):
        raise errors.AnswerGone(
            "nothing is left of the answer that this asks the rest of", hint="send the request again under another idempotency key"
        )
    if isinstance(asked.request, InferenceRequest) and (asked.request.n or 1) > 1:
        raise errors.AnswerGone(
            "the gateway that gave this answer has gone, and several answers at once are not made again in the same order",
            hint="send the request again without asking for the rest",
        )
