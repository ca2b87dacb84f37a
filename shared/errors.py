"""Every error that may cross a wire: what happened, whose fault it is, and whether trying again helps.

A class is a kind of failure and its ``code`` is for ever: clients, scripts and dashboards match on it. The message
says what happened and the hint what to do next; both are for people and may change.
"""

from enum import StrEnum
from typing import ClassVar

import msgspec


class Fault(StrEnum):
    """Who has to change something for the call to succeed."""

    CALLER = "caller"
    PEER = "peer"
    OURS = "ours"


class Problem(msgspec.Struct, array_like=True, frozen=True):
    """An error as it travels: in an ERROR frame, in JSON for the CLI, inside an HTTP answer."""

    code: str
    message: str
    hint: str = ""
    fault: Fault = Fault.OURS
    retryable: bool = False
    retry_after_ms: int | None = None


class AimeshError(Exception):
    """The root of the tree. Raised where something is known; caught by who can do something about it."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.OURS
    retryable: ClassVar[bool] = False
    #: What an HTTP client sees; 500 only where nothing a caller sends can cause it.
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


# --- the caller must change the request ---------------------------------------------------------------------------


class CallerError(AimeshError):
    """The request cannot succeed as it is; the caller has to change something."""

    code = "bad_request"
    fault = Fault.CALLER
    status = 400


class BadRequest(CallerError):
    """The request does not fit its type or its limits; the message names the field."""


class NotAuthenticated(CallerError):
    """No credential, or one that is malformed, unknown, expired or revoked."""

    code = "not_authenticated"
    status = 401


class BudgetExhausted(CallerError):
    """Money, not rate: waiting does not help."""

    code = "budget_exhausted"
    status = 402


class NotAllowed(CallerError):
    """Known, but may not do this."""

    code = "not_allowed"
    status = 403


class SecondFactorNeeded(NotAllowed):
    """The password was right and is not enough: a code is to be entered, or a second factor to be set up."""

    code = "second_factor_needed"


class ConfirmationNeeded(NotAllowed):
    """The login is good, and too old for something this sensitive; confirming it makes it fresh."""

    code = "confirmation_needed"


class WrongRole(NotAllowed):
    """The node's role is not among the method's callers."""

    code = "wrong_role"


class NotCertified(NotAllowed):
    """The certificate is missing, forged, of another mesh, or of another key than the one that was proved."""

    code = "not_certified"


class CertificateExpired(NotCertified):
    """It was good once; the node renews it with its key alone."""

    code = "certificate_expired"


class ClockSkew(NotCertified):
    """The peer's clock and ours are too far apart to judge its certificate; the message says how far."""

    code = "clock_skew"


class NodeRevoked(NotCertified):
    """An administrator has cut this node off; only a new ticket, with a new key, lets the machine in again."""

    code = "node_revoked"


class BadTicket(NotAllowed):
    """The ticket is unknown, expired, used up, revoked or not copied whole; the message says which."""

    code = "bad_ticket"


class ApprovalPending(NotAllowed):
    """The ticket was good, and an administrator still has to approve the node."""

    code = "approval_pending"
    retryable = True


class NotFound(CallerError):
    """There is no such thing, or it is not the caller's to see."""

    code = "not_found"
    status = 404


class UnknownMethod(NotFound):
    """The node does not serve a method of this name; an older version may not have it."""

    code = "unknown_method"


class UnknownModel(NotFound):
    """Nobody serves this model; the message lists those that are served."""

    code = "unknown_model"


class MethodNotAllowed(CallerError):
    """The path exists, but not for this HTTP method."""

    code = "method_not_allowed"
    status = 405


class AlreadyExists(CallerError):
    """The name or the address belongs to somebody already."""

    code = "already_exists"
    status = 409


class IdempotencyConflict(AlreadyExists):
    """The idempotency key was used for another request; each request has its own."""

    code = "idempotency_conflict"


class InProgress(CallerError):
    """The same request under the same idempotency key still runs; ``retry_after_seconds`` says when to ask again."""

    code = "in_progress"
    retryable = True
    status = 409


class AnswerGone(CallerError):
    """An answer was given and is no longer here to be read again; the same key does not make it anew."""

    code = "answer_gone"
    status = 410


class TooLarge(CallerError):
    """The body, the prompt or the answer has more bytes than one may have; the message says how many are taken."""

    code = "too_large"
    status = 413


class TokensTooLarge(BadRequest):
    """More tokens than the limit per minute lets any one request take; waiting does not help."""

    code = "tokens_too_large"


class UnsupportedMedia(CallerError):
    """The body is not in a format that this path reads; the hint names the one that is."""

    code = "unsupported_media_type"
    status = 415


class Limited(CallerError):
    """A rate limit; ``retry_after_seconds`` says when there is room again."""

    code = "rate_limited"
    retryable = True
    status = 429


class Poison(CallerError):
    """The request ended two engines, or two workers, that ran it; it is not run again."""

    code = "poison"


class Cancelled(CallerError):
    """The caller withdrew the call, or went away."""

    code = "cancelled"
    status = 499


# --- the other side of a link, or what lies between ----------------------------------------------------------------


class PeerError(AimeshError):
    """The node or server that should have answered could not; the same request may succeed later."""

    code = "peer_failed"
    fault = Fault.PEER
    retryable = True
    status = 503


class LinkLost(PeerError):
    """The link died with the call on it: a gap, three seconds of silence, or a close by the peer."""

    code = "link_lost"


class NotReachable(PeerError):
    """No node of that role is alive, or it did not answer a HELLO."""

    code = "not_reachable"


class Draining(PeerError):
    """The peer is shutting down and takes no new calls; another node will."""

    code = "draining"


class Overloaded(PeerError):
    """A bound was reached: calls per link, queue length, connections."""

    code = "overloaded"


class Unavailable(PeerError):
    """A store or backend that this call needs does not answer; the message names it."""

    code = "unavailable"


class DeadlineExceeded(PeerError):
    """There was no answer within the time that the caller gave."""

    code = "deadline_exceeded"
    status = 504


class ProtocolViolation(PeerError):
    """The peer broke the wire protocol; the link is closed."""

    code = "protocol_violation"
    retryable = False


class ModelCrashed(PeerError):
    """The engine process died while it was generating; the worker restarts it."""

    code = "model_crashed"


class WorkerLost(PeerError):
    """The worker was lost in the middle of its answer, and no other could go on with it; what had come until then is counted."""

    code = "worker_lost"


# --- our own fault --------------------------------------------------------------------------------------------------


class Internal(AimeshError):
    """A bug. The log of the service has the traceback under the request id; the caller only learns that."""


class BadSettings(AimeshError):
    """Settings that cannot work, all mistakes of one start together. Ends the program with its message."""

    code = "bad_settings"
    fault = Fault.CALLER
    status = 400


class RemoteError(AimeshError):
    """An error of a newer peer whose code this version does not know; it keeps the peer's code."""

    def __init__(self, problem: Problem) -> None:
        after = problem.retry_after_ms
        super().__init__(problem.message, hint=problem.hint, retry_after_seconds=None if after is None else after / 1000)
        self.problem = problem

    def to_problem(self) -> Problem:
        return self.problem


def _tree(root: type[AimeshError]) -> list[type[AimeshError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


#: code -> class. Where a family shares its code (``CallerError`` and ``BadRequest``) the later, more precise one wins.
BY_CODE: dict[str, type[AimeshError]] = {kind.code: kind for kind in _tree(AimeshError) if kind is not RemoteError}
BY_CODE["internal"] = Internal


def from_problem(problem: Problem) -> AimeshError:
    """The exception that the peer raised, as an object of this side's tree."""
    kind = BY_CODE.get(problem.code)
    if kind is None:
        return RemoteError(problem)
    after = problem.retry_after_ms
    return kind(problem.message, hint=problem.hint, retry_after_seconds=None if after is None else after / 1000)


def code_of(error: AimeshError) -> str:
    """The code on the wire, also for an error that only a newer peer knows."""
    return error.to_problem().code
