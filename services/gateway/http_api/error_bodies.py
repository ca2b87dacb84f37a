"""The error object of OpenAI's API. Pure."""

import msgspec

from shared.types import RequestId


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    #: Stable for ever; match on it.
    code: str
    #: The field that is wrong, where one is.
    param: str | None
    #: What to do next; may be empty.
    hint: str
    request_id: RequestId


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorObject
