"""Defines every error that may cross a wire: what happened, whose fault it is, and whether a retry helps.

The ``code`` of a class never changes, because clients, scripts and dashboards match on it. The message says what happened and the hint
what to do next; both are for users and may change.
"""

from enum import StrEnum
from typing import ClassVar, TypeVar, cast

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


class AimeshError(Exception):
    """The root of all our errors."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.OURS
    retryable: ClassVar[bool] = False
    #: The HTTP status. 500 only where nothing that a caller sends can cause it.
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_seconds = retry_after_seconds

    def to_problem(self) -> Problem:
        after = self.retry_after_seconds
        return Problem(
            code=self.code,
            message=self.message,
            hint=self.hint,
            fault=self.fault,
            retryable=self.retryable,
            retry_after_ms=None if after is None else max(0, round(after * 1000)),
        )


# --- the caller must change the request


class CallerError(AimeshError):
    """The request cannot succeed as it is. The caller must change something."""

    code = "bad_request"
    fault = Fault.CALLER
    status = 400


class BadRequest(CallerError):
    """The request has a wrong type or exceeds a limit. The message names the field."""


class ContentFiltered(BadRequest):
    """The prompt contains what a policy refuses, such as a card number. The message names the field and the kinds."""

    code = "content_filter"


class NotAuthenticated(CallerError):
    """The credential is missing, malformed, unknown, expired or revoked."""

    code = "not_authenticated"
    status = 401


class BudgetExhausted(CallerError):
    """The credits or a key's budget are used up. Waiting does not help."""

    code = "budget_exhausted"
    status = 402


class NotAllowed(CallerError):
    """The caller is authenticated but may not do this."""

    code = "not_allowed"
    status = 403


class PolicyForbidden(NotAllowed):
    """A policy of the mesh, the organization, the key or the request excludes everything that could answer."""

    code = "policy_forbidden"


class SecondFactorNeeded(NotAllowed):
    """The password was right. A code must be entered, or a second factor set up."""

    code = "second_factor_needed"


class ConfirmationNeeded(NotAllowed):
    """The login is too old for a sensitive action. Confirming it makes it fresh."""

    code = "confirmation_needed"


class WrongRole(NotAllowed):
    """The node's role may not call this method."""

    code = "wrong_role"


class NotCertified(NotAllowed):
    """The certificate is missing, forged, of another mesh, or for another key."""

    code = "not_certified"


class CertificateExpired(NotCertified):
    """The certificate has expired. The node can renew it with its key."""

    code = "certificate_expired"


class ClockSkew(NotCertified):
    """The clocks of both nodes differ too much to check the certificate. The message says by how much."""

    code = "clock_skew"


class NodeRevoked(NotCertified):
    """An administrator revoked this node. The machine needs a new ticket and a new key to join again."""

    code = "node_revoked"


class BadTicket(NotAllowed):
    """The ticket is unknown, expired, used up, revoked or incomplete. The message says which."""

    code = "bad_ticket"


class ApprovalPending(NotAllowed):
    """The ticket is valid, but an administrator must still approve the node."""

    code = "approval_pending"
    retryable = True


class NotFound(CallerError):
    """It does not exist, or the caller may not see it."""

    code = "not_found"
    status = 404


class UnknownMethod(NotFound):
    """The node has no method of this name. An older version may lack it."""

    code = "unknown_method"


class UnknownModel(NotFound):
    """No worker serves this model. The message lists the models that are served."""

    code = "unknown_model"


class MethodNotAllowed(CallerError):
    """The path does not accept this HTTP method."""

    code = "method_not_allowed"
    status = 405


class AlreadyExists(CallerError):
    """The name or address is already taken."""

    code = "already_exists"
    status = 409


class IdempotencyConflict(AlreadyExists):
    """The idempotency key was used for a different request. Use a new key for each request."""

    code = "idempotency_conflict"


class InProgress(CallerError):
    """The same request with the same idempotency key is still running. ``retry_after_seconds`` says when to ask again."""

    code = "in_progress"
    retryable = True
    status = 409


class AnswerGone(CallerError):
    """The answer is no longer stored. Repeating the request with the same key does not generate it again."""

    code = "answer_gone"
    status = 410


class TooLarge(CallerError):
    """The body, the prompt or the answer has too many bytes. The message gives the limit."""

    code = "too_large"
    status = 413


class ContextExceeded(BadRequest):
    """The prompt leaves no room for an answer in the model's context. The message gives both sizes."""

    code = "context_length_exceeded"


class TokensTooLarge(BadRequest):
    """One request needs more tokens than the limit per minute allows. Waiting does not help."""

    code = "tokens_too_large"


class UnsupportedMedia(CallerError):
    """This path does not accept the body's format. The hint names the right one."""

    code = "unsupported_media_type"
    status = 415


class Limited(CallerError):
    """A rate limit was reached. ``retry_after_seconds`` says when to retry."""

    code = "rate_limited"
    retryable = True
    status = 429


class Poison(CallerError):
    """The request crashed two engines or two workers and is not run again."""

    code = "poison"


class Cancelled(CallerError):
    """The caller canceled the call or disconnected."""

    code = "cancelled"
    status = 499


# --- the other node, a server, or the network between


class PeerError(AimeshError):
    """A node or server failed to answer. The same request may succeed later."""

    code = "peer_failed"
    fault = Fault.PEER
    retryable = True
    status = 503


class LinkLost(PeerError):
    """The link was lost during the call: by a gap, three seconds of silence, or a close by the peer."""

    code = "link_lost"


class NotReachable(PeerError):
    """No node of that role is alive, or it did not answer a HELLO."""

    code = "not_reachable"


class Draining(PeerError):
    """The peer is shutting down and takes no new calls. Another node does."""

    code = "draining"


class Overloaded(PeerError):
    """A limit was reached: calls per link, queue length or connections."""

    code = "overloaded"


class Unavailable(PeerError):
    """A store or backend that this call needs does not answer. The message names it."""

    code = "unavailable"


class DeadlineExceeded(PeerError):
    """The answer did not arrive within the caller's deadline."""

    code = "deadline_exceeded"
    status = 504


class ProtocolViolation(PeerError):
    """The peer violated the wire protocol. The link is closed."""

    code = "protocol_violation"
    retryable = False


class ModelCrashed(PeerError):
    """The engine process crashed during the generation. The worker restarts it."""

    code = "model_crashed"


class WorkerLost(PeerError):
    """The worker was lost in the middle of its answer and no other could continue. Only what was delivered is billed."""

    code = "worker_lost"


# --- our own fault


class Internal(AimeshError):
    """A bug. The service logs the traceback under the request id."""


class BadSettings(AimeshError):
    """Invalid settings; all mistakes are reported together. Ends the program with this message."""

    code = "bad_settings"
    fault = Fault.CALLER
    status = 400


class RemoteError(AimeshError):
    """An error of a newer peer. Its code, unknown to this version, is kept."""

    def __init__(self, problem: Problem) -> None:
        after = problem.retry_after_ms
        super().__init__(problem.message, hint=problem.hint, retry_after_seconds=None if after is None else after / 1000)
        self.problem = problem

    def to_problem(self) -> Problem:
        return self.problem


def _tree(root: type[AimeshError]) -> list[type[AimeshError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


#: code -> class. Where a family shares a code (``CallerError`` and ``BadRequest``), the later and more precise class wins.
BY_CODE: dict[str, type[AimeshError]] = {kind.code: kind for kind in _tree(AimeshError) if kind is not RemoteError}
BY_CODE["internal"] = Internal


def from_problem(problem: Problem) -> AimeshError:
    """Return the exception that the peer raised, as an instance of this version's class."""
    kind = BY_CODE.get(problem.code)
    if kind is None:
        return RemoteError(problem)
    after = problem.retry_after_ms
    return kind(problem.message, hint=problem.hint, retry_after_seconds=None if after is None else after / 1000)


def code_of(error: AimeshError) -> str:
    """Return the code on the wire, also for errors that only a newer peer knows."""
    return error.to_problem().code


def first_of(group: BaseExceptionGroup[E]) -> E:
    """Return the first error in a group of errors or groups."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return cast("E", found)
