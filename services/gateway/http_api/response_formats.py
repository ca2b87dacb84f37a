"""How an API words an answer: what the door asks of every wording, whichever API it is of. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from services.gateway.admission.prompt_admission import BadField
from services.gateway.http_api.error_bodies import ErrorBody
from shared.api.gateway import InferenceResult, Rest
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName, RequestId


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What every answer says of itself."""

    request_id: RequestId
    model: ModelName
    #: Seconds since 1970.
    created: int
    #: Another one where the same seed may give another answer.
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One server-sent event."""

    content: msgspec.Struct | bytes
    #: Of its `event:` line; empty for none.
    name: str = ""


DONE = ServerSentEvent(b"[DONE]")


class AnswerFormat(Protocol):
    """One answer, as its chunks come. The same chunks give the same events, so that a reader who lost some can be told the rest."""

    def begin(self, about: AnswerFacts) -> None:
        """Before the first chunk."""

    def gather(self, chunk: Chunk) -> None:
        """Of an answer that is told as a whole."""

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        """Gathers it too, and gives what a stream tells of it."""

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        """The end of a stream."""

    def failed(self, error: ErrorBody) -> Sequence[ServerSentEvent]:
        """The end of a stream that had begun; ``begin`` may not have been called."""

    def whole(self, result: InferenceResult) -> msgspec.Struct:
        """The answer, of all that was gathered."""


def reasons(result: InferenceResult, answers: int) -> tuple[FinishReason, ...]:
    """One for each answer that was asked for, however many the worker tells of."""
    found = result.finish_reasons or (result.finish_reason,)
    return tuple(found[index] if index < len(found) else found[0] for index in range(answers))


#: The id of an event: whose answer it belongs to, and the number of its chunk. A client that lost its stream sends the last id that it
#: saw as `Last-Event-ID`.
_EVENT_ID = re.compile(r"(?P<request>[0-9a-f]{32})-(?P<number>[0-9]{1,9})\Z")


def write_event_id(request_id: RequestId, number: int) -> str:
    return f"{request_id.hex}-{number}"


def read_event_id(event_id: str) -> Rest:
    """Return what is left of the answer after this event. Raises BadRequest if the id is not ours."""
    found = _EVENT_ID.match(event_id)
    if found is None:
        raise BadField("Last-Event-ID", "is not the id of an event of this gateway; send the id as it came, or leave it out")
    return Rest(int(found["number"]))
