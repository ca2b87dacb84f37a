"""Holds the context of the request that the running task works for. Every frame carries it, and every log line shows it."""

import os
import time
from contextvars import Context, ContextVar, copy_context
from uuid import UUID

import msgspec

from shared.spans import OpenSpan
from shared.types import RequestId


class RequestContext(msgspec.Struct, frozen=True):
    request_id: RequestId
    #: The W3C trace context that the request arrived with.
    incoming_traceparent: str = ""
    span: OpenSpan | None = None

    @property
    def traceparent(self) -> str:
        """Return the W3C trace context for outgoing calls, `00-<trace>-<span>-<flags>`."""
        return self.incoming_traceparent if self.span is None else self.span.traceparent


#: None outside requests, such as at startup and in background jobs.
current: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)

#: The monotonic deadline of the running task's work. Calls on the way may not take longer.
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def without_deadline() -> Context:
    """Return the context of the running task for another one that goes on when its call is over."""
    found = copy_context()
    found.run(deadline.set, None)
    return found


def new_request_id() -> RequestId:
    """Return a UUIDv7 (RFC 9562 §5.7). It sorts by time, which keeps rows and logs of one moment together."""
    milliseconds = time.time_ns() // 1_000_000
    value = int.from_bytes(milliseconds.to_bytes(6, "big") + os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return RequestId(UUID(int=value))


def begin(traceparent: str = "") -> RequestContext:
    """Create a request context. Without a caller's trace, the trace id is the request id, so that one leads to the other."""
    request_id = new_request_id()
    return RequestContext(request_id, traceparent or f"00-{request_id.hex}-{os.urandom(8).hex()}-00")


def start(traceparent: str = "") -> RequestContext:
    """``begin`` a request for the running task."""
    context = begin(traceparent)
    current.set(context)
    return context


def another() -> RequestContext:
    """Give the running task a new request within the trace of the current one."""
    now = current.get()
    if now is None:
        return start()
    new = RequestContext(new_request_id(), now.incoming_traceparent, now.span)
    current.set(new)
    return new
