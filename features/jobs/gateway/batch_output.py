"""Writes the lines of the files with a batch's results, as OpenAI does. Pure; it runs in a thread, because results are sealed."""

from collections.abc import Iterator
from uuid import uuid5

import msgspec

from features.jobs.gateway.rules import line_results
from features.jobs.gateway.store import Job, StoredLine
from features.jobs.rules.states import LineState
from shared import errors
from shared.protocol import public_ids

#: Of one piece; a line may be longer.
_PIECE_BYTES = 256 << 10
_NEVER_RAN = {LineState.EXPIRED: "batch_expired", LineState.CANCELLED: "batch_cancelled"}
_MESSAGES = {
    "batch_expired": "the window of the batch had passed before this line had an answer",
    "batch_cancelled": "the batch was cancelled before this line had an answer",
    "lease_lost_repeatedly": "the gateways that ran this line were lost each time",
}


class OutputResponse(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    #: As the endpoint has answered.
    body: msgspec.Raw


class OutputError(msgspec.Struct, frozen=True):
    code: str
    message: str


class OutputLine(msgspec.Struct, frozen=True):
    """One of the two is None."""

    id: str
    custom_id: str
    response: OutputResponse | None
    error: OutputError | None


_encode = msgspec.json.Encoder().encode


def write_some(job: Job, lines: Iterator[StoredLine], secret: str) -> bytes:
    """Write the next lines; nothing after the last. The same results always make the same bytes."""
    written = bytearray()
    while len(written) < _PIECE_BYTES and (line := next(lines, None)) is not None:
        written += _encode(_line(job, line, secret)) + b"\n"
    return bytes(written)


def _line(job: Job, line: StoredLine, secret: str) -> OutputLine:
    response, code = None, line.error_code or _NEVER_RAN.get(line.state, "internal")
    message = _MESSAGES.get(code, "this line has no answer")
    if line.result is not None and line.status_code is not None:
        try:
            body = msgspec.Raw(line_results.unseal(line.result, job.tenant_id, job.id, line.line, secret))
            response = OutputResponse(line.status_code, str(line.request_id), body)
        except errors.FileDamaged as error:
            code, message = error.code, error.message
    name = public_ids.encode("batch_req", uuid5(job.id, str(line.line)), "_")
    return OutputLine(name, line.custom_id, response, None if response is not None else OutputError(code, message))
