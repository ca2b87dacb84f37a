"""Defines every error that may cross a wire: what happened, whose fault it is, and whether a retry helps.

The ``code`` of a class never changes, because clients, scripts and dashboards match on it. The message says what happened and the hint
what to do next; both are for users and may change.
"""

from enum import StrEnum
from typing import ClassVar, Self, TypeVar, cast

import msgspec

E = TypeVar("E", bound=BaseException)


class Fault(StrEnum):
    """Who must change something for the call to succeed."""

    CALLER = "caller"
    PEER = "peer"
    OURS = "ours"


class Problem(msgspec.Struct, array_like=True, frozen=True):
    """An error on the wire: in an ERROR frame, in JSON for the CLI, in an HTTP response."""

    code: str
    message: str
    hint: str = ""
    fault: Fault = Fault.OURS
    retryable: bool = False
    retry_after_ms: int | None = None
    #: The field of the request that is at fault; empty if none is.
    field: str = ""


class AimeshError(Exception):
    """The root of all our errors."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.OURS
    retryable: ClassVar[bool] = False
    #: The HTTP status. 500 only where nothing that a caller sends can cause it.
    status: ClassVar[int] = 500

    def __init_subclass__(
        cls, *, code: str | None = None, fault: Fault | None = None, retryable: bool | None = None, status: int | None = None
    ) -> None:
        given = {"code": code, "fault": fault, "retryable": retryable, "status": status}
        for name, value in given.items():
            if value is not None:
                setattr(cls, name, value)

    def __init__(self, message: str, *, hint: str = "", retry_after_seconds: float | None = None, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_seconds = retry_after_seconds
        self.field = field

    def to_problem(self) -> Problem:
        after = self.retry_after_seconds
        return Problem(
            code=self.code,
            message=self.message,
            hint=self.hint,
            fault=self.fault,
            retryable=self.retryable,
            retry_after_ms=None if after is None else max(0, round(after * 1000)),
            field=self.field,
        )


# --- the caller must change the request


class CallerError(AimeshError, code="bad_request", fault=Fault.CALLER, status=400):
    """The request cannot succeed as it is. The caller must change something."""


class BadRequest(CallerError):
    """The request has a wrong type or exceeds a limit. The message names the field."""

    @classmethod
    def of(cls, field: str, what: str, *, hint: str = "") -> Self:
        return cls(f"{field}: {what}", hint=hint, field=field)


class ContentFiltered(BadRequest, code="content_filter"):
    """The prompt contains what a policy refuses, such as a card number. The message names the field and the kinds."""


class AuthorizationPending(CallerError, code="authorization_pending", retryable=True):
    """Nobody has approved the login yet (RFC 8628). ``retry_after_seconds`` says when to ask again."""


class SlowDown(AuthorizationPending, code="slow_down"):
    """The program asked too soon. From now on it must wait longer: ``retry_after_seconds``."""


class DeviceLoginDenied(CallerError, code="access_denied"):
    """The person refused the login."""


class DeviceLoginExpired(CallerError, code="expired_token"):
    """Nobody approved the login in time, or its session was already picked up."""


class NotAuthenticated(CallerError, code="not_authenticated", status=401):
    """The credential is missing, malformed, unknown, expired or revoked."""


class BudgetExhausted(CallerError, code="budget_exhausted", status=402):
    """The credits or a key's budget are used up. Waiting helps only if running requests hold them; then it says when to retry."""


class NotAllowed(CallerError, code="not_allowed", status=403):
    """The caller is authenticated but may not do this."""


class PolicyForbidden(NotAllowed, code="policy_forbidden"):
    """A policy of the mesh, the organization, the key or the request excludes everything that could answer."""


class PersonRefused(NotAllowed, code="person_refused"):
    """The key names people, and this request names nobody whom it may serve: an unknown address, a closed account, or no name at all."""


class SecondFactorNeeded(NotAllowed, code="second_factor_needed"):
    """The password was right. A code must be entered, or a second factor set up."""


class ConfirmationNeeded(NotAllowed, code="confirmation_needed"):
    """The login is too old for a sensitive action. Confirming it makes it fresh."""


class WrongRole(NotAllowed, code="wrong_role"):
    """The node's role may not call this method."""


class NotCertified(NotAllowed, code="not_certified"):
    """The certificate is missing, forged, of another mesh, or for another key."""


class CertificateExpired(NotCertified, code="certificate_expired"):
    """The certificate has expired. The node can renew it with its key."""


class ClockSkew(NotCertified, code="clock_skew"):
    """The clocks of both nodes differ too much to check the certificate. The message says by how much."""


class NodeRevoked(NotCertified, code="node_revoked"):
    """An administrator revoked this node. The machine needs a new ticket and a new key to join again."""


class BadTicket(NotAllowed, code="bad_ticket"):
    """The ticket is unknown, expired, used up, revoked or incomplete. The message says which."""


class ApprovalPending(NotAllowed, code="approval_pending", retryable=True):
    """The ticket is valid, but an administrator must still approve the node."""


class NotFound(CallerError, code="not_found", status=404):
    """It does not exist, or the caller may not see it."""


class UnknownMethod(NotFound, code="unknown_method"):
    """The node has no method of this name. An older version may lack it."""


class UnknownModel(NotFound, code="unknown_model"):
    """No worker serves this model. The message lists the models that are served."""


class MethodNotAllowed(CallerError, code="method_not_allowed", status=405):
    """The path does not accept this HTTP method."""


class AlreadyExists(CallerError, code="already_exists", status=409):
    """The name or address is already taken."""


class IdempotencyConflict(AlreadyExists, code="idempotency_conflict"):
    """The idempotency key was used for a different request. Use a new key for each request."""


class InUse(CallerError, code="in_use", status=409):
    """Something else still needs it. The message names what."""


class InProgress(CallerError, code="in_progress", retryable=True, status=409):
    """The same request with the same idempotency key is still running. ``retry_after_seconds`` says when to ask again."""


class AnswerGone(CallerError, code="answer_gone", status=410):
    """The answer is no longer stored. Repeating the request with the same key does not generate it again."""


class TooLarge(CallerError, code="too_large", status=413):
    """The body, the prompt or the answer has too many bytes. The message gives the limit."""


class ContextExceeded(BadRequest, code="context_length_exceeded"):
    """The prompt leaves no room for an answer in the model's context, or is larger than any prompt may be. The message gives both sizes.

    Agents compact their conversation and try again. They recognize this error by the code, or by words of Anthropic's and OpenAI's.
    """

    @classmethod
    def because(cls, reason: str, *, hint: str) -> Self:
        return cls(f"prompt is too long: {reason}", hint=hint)

    @classmethod
    def of_tokens(cls, prompt_tokens: int, context_tokens: int, *, hint: str) -> Self:
        length = f"this model's maximum context length is {context_tokens} tokens, with one for the answer"
        return cls.because(f"{prompt_tokens} tokens > {context_tokens - 1} maximum; {length}", hint=hint)


class TokensTooLarge(BadRequest, code="tokens_too_large"):
    """One request needs more tokens than the limit per minute allows. Waiting does not help."""


class UnsupportedMedia(CallerError, code="unsupported_media_type", status=415):
    """This path does not accept the body's format. The hint names the right one."""


class RangeNotSatisfiable(CallerError, code="range_not_satisfiable", status=416):
    """The Range header names no byte of the content. The message gives its size."""


class Limited(CallerError, code="rate_limited", retryable=True, status=429):
    """A rate limit was reached. ``retry_after_seconds`` says when to retry."""


class Poison(CallerError, code="poison"):
    """The request crashed two engines or two workers and is not run again."""


class InsufficientStorage(CallerError, code="insufficient_storage", status=507):
    """A disk or a quota has no room for it. The message gives both sizes."""


class Cancelled(CallerError, code="cancelled", status=499):
    """The caller canceled the call or disconnected."""


# --- the other node, a server, or the network between


class PeerError(AimeshError, code="peer_failed", fault=Fault.PEER, retryable=True, status=503):
    """A node or server failed to answer. The same request may succeed later."""


class LinkLost(PeerError, code="link_lost"):
    """The link was lost during the call: by a gap, three seconds of silence, or a close by the peer."""


class TransportLost(LinkLost):
    """The link was lost because our connection to the NATS server failed or was silent. The peer may still be running.

    A peer that hears of it learns of a lost link only, and retries as after any other.
    """


class NotReachable(PeerError, code="not_reachable"):
    """No node of that role is alive, or it did not answer a HELLO."""


class NotConnected(NotReachable):
    """Our own connection to the NATS server is lost, so this says nothing about the node. A peer learns that a node was not reachable."""


class NotStarted(NotReachable, code="not_started"):
    """No worker of the model's pool became ready in time, or none can be started. ``retry_after_seconds`` is the time of a start."""


class Draining(PeerError, code="draining"):
    """The peer is shutting down and takes no new calls. Another node does."""


class Overloaded(PeerError, code="overloaded"):
    """A limit was reached: calls per link, queue length or connections."""


class Preempted(PeerError, code="preempted"):
    """Live requests need the worker, so it has given up a request that nobody waits for. It continues later, or elsewhere."""


class ResourceUnavailable(PeerError, code="resource_unavailable", status=429):
    """A request that waits behind live ones found no free worker in time. Nothing was billed."""


class Unavailable(PeerError, code="unavailable"):
    """A store or backend that this call needs does not answer. The message names it."""


class ConfigUnreadable(Unavailable, code="config_unreadable"):
    """A newer release wrote a document of the configuration that restricts this call, and this gateway can't read it. Nothing runs under an
    older version, which may be laxer. Another gateway may answer."""


class FileDamaged(PeerError, code="file_damaged", retryable=False):
    """A part of a stored file is missing, or isn't what was stored."""


class DeadlineExceeded(PeerError, code="deadline_exceeded", status=504):
    """The answer did not arrive within the caller's deadline."""


class ProtocolViolation(PeerError, code="protocol_violation", retryable=False):
    """The peer violated the wire protocol. The link is closed."""


class ModelCrashed(PeerError, code="model_crashed"):
    """The engine process crashed during the generation. The worker restarts it."""


class WorkerLost(PeerError, code="worker_lost"):
    """The worker was lost in the middle of its answer and no other could continue. Only what was delivered is billed."""


# --- our own fault


class Internal(AimeshError):
    """A bug. The service logs the traceback under the request id."""


class BadSettings(AimeshError, code="bad_settings", fault=Fault.CALLER, status=400):
    """Invalid settings; all mistakes are reported together. Ends the program with this message."""


class RemoteError(AimeshError):
    """An error of a newer peer. Its code, unknown to this version, is kept."""

    def __init__(self, problem: Problem) -> None:
        after = problem.retry_after_ms
        super().__init__(
            problem.message, hint=problem.hint, retry_after_seconds=None if after is None else after / 1000, field=problem.field
        )
        self.problem = problem

    def to_problem(self) -> Problem:
        return self.problem


def _tree(root: type[AimeshError]) -> list[type[AimeshError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


#: code -> class. Where a family shares a code (``CallerError`` and ``BadRequest``), the later and more precise class wins.
BY_CODE: dict[str, type[AimeshError]] = {kind.code: kind for kind in _tree(AimeshError) if kind is not RemoteError}
BY_CODE["internal"] = Internal
BY_CODE["link_lost"] = LinkLost
BY_CODE["not_reachable"] = NotReachable
#: Our own connection was lost: they say nothing about the node that was called.
OWN_CONNECTION_LOST = (TransportLost, NotConnected)


def from_problem(problem: Problem) -> AimeshError:
    """Return the exception that the peer raised, as an instance of this version's class."""
    kind = BY_CODE.get(problem.code)
    if kind is None:
        return RemoteError(problem)
    after = problem.retry_after_ms
    return kind(problem.message, hint=problem.hint, retry_after_seconds=None if after is None else after / 1000, field=problem.field)


def code_of(error: AimeshError) -> str:
    """Return the code on the wire, also for errors that only a newer peer knows."""
    return error.to_problem().code


def first_of(group: BaseExceptionGroup[E]) -> E:
    """Return the first error in a group of errors or groups."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return cast("E", found)


def drop_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an error and its causes, once nothing will print them. Call it where an error is answered or stored: a frame
    in it often refers to the error, and such a cycle would keep the whole request until a collection, which is rare (``program``)."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is not None and found.__traceback__ is not None:
            found.__traceback__ = None
            waiting += [found.__cause__, found.__context__]
