"""Which request the running task works for: set at the door, carried by every frame, bound into every log line."""

import os
import time
from contextvars import ContextVar
from uuid import UUID

import msgspec

from shared.spans import OpenSpan
from shared.types import RequestId


class RequestContext(msgspec.Struct, frozen=True):
    request_id: RequestId
    #: W3C trace context as it came.
    came_with: str = ""
    #: The span that runs; None for what nobody looks at.
    span: OpenSpan | None = None

    @property
    def traceparent(self) -> str:
        """W3C trace context, `00-<trace>-<span>-<flags>`, for what is asked of others."""
        return self.came_with if self.span is None else self.span.traceparent


#: None outside any request: start-up, background jobs.
current: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)

#: The monotonic time by which the running task's work has to be done; a call made on the way may not take longer.
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def new_request_id() -> RequestId:
    """A UUIDv7 (RFC 9562 §5.7): sorts by time, so that rows and logs of one moment lie together."""
    milliseconds = time.time_ns() // 1_000_000
    value = int.from_bytes(milliseconds.to_bytes(6, "big") + os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return RequestId(UUID(int=value))


def begin(traceparent: str = "") -> RequestContext:
    """A new request; without a caller's trace its id is the request's, so that one finds the other."""
    request_id = new_request_id()
    return RequestContext(request_id, traceparent or f"00-{request_id.hex}-{os.urandom(8).hex()}-00")


def start(traceparent: str = "") -> RequestContext:
    """``begin`` one, for the running task."""
    context = begin(traceparent)
    current.set(context)
    return context


def another() -> RequestContext:
    """For the running task: a request of its own within the trace of the one that it works for."""
    now = current.get()
    if now is None:
        return start()
    new = RequestContext(new_request_id(), now.came_with, now.span)
    current.set(new)
    return new
