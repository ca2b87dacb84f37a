"""Defines OpenAI's error object. Pure."""

import msgspec

from shared.types import RequestId


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    #: Stable: match on it.
    code: str
    #: The invalid field, if there is one.
    param: str | None
    #: What to do next; may be empty.
    hint: str
    request_id: RequestId


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorObject
