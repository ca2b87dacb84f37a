"""Reads the input file of a batch piece by piece, and says which lines are malformed. Pure; runs in a thread, because it decodes JSON."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw

from features.jobs.contract import LineError
from services.gateway.facts import body_values
from shared.types import ModelName

MAX_LINES, MAX_LINE_BYTES, MAX_CUSTOM_ID, MAX_MODEL = 50_000, 1 << 20, 512, 200
MAX_ERRORS = 100
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ID_BYTES = 16


class NewLine(msgspec.Struct, frozen=True):
    line: int
    custom_id: str
    #: Its place in the input file.
    start: int
    size: int
    #: Of what it begins with.
    prefix: bytes


class _Line(msgspec.Struct, frozen=True, gc=False):
    """Values stay as they are written: those of a line of 1 MiB would hold the interpreter's lock for 0.4 s while they are made."""

    custom_id: Raw = Raw()
    method: Raw = Raw()
    url: Raw = Raw()
    body: Raw = Raw()


class LineBody(msgspec.Struct, frozen=True, gc=False):
    """What decides where a line runs, as it is written."""

    model: Raw = Raw()
    stream: Raw = Raw()
    input: Raw = Raw()
    system: Raw = Raw()
    instructions: Raw = Raw()
    tools: Raw = Raw()
    messages: Raw = Raw()


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: Raw = Raw()
    content: Raw = Raw()


class _Malformed(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class BatchInput:
    """Feed it the whole file with ``read``, then call ``end``. Its memory doesn't grow with the length of lines or files."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.errors: list[LineError] = []
        #: Of all lines; None before the first.
        self.model: ModelName | None = None
        self.total = 0
        self._inputs = 0
        #: Where each custom_id is.
        self._lines: dict[bytes, int] = {}
        self._rest = bytearray()
        self._offset, self._number = 0, 0
        self._skips = self._is_stopped = False

    @property
    def is_over(self) -> bool:
        """Whether the rest of the file doesn't matter any more."""
        return self._is_stopped or len(self.errors) >= MAX_ERRORS

    def read(self, data: bytes) -> Iterator[NewLine]:
        """Yield the lines that are whole and well-formed."""
        at = 0
        while not self.is_over and (end := data.find(b"\n", at)) >= 0:
            yield from self._take(data[at:end], ends=1)
            at = end + 1
        if not self.is_over:
            self._keep(data[at:])

    def end(self) -> Iterator[NewLine]:
        """Yield the last line, if it has no line break."""
        if self._rest or self._skips:
            yield from self._take(b"", ends=0)
        if not self.total and not self.errors:
            self.errors.append(LineError("empty_file", "the file has no lines"))

    def _keep(self, data: bytes) -> None:
        if not self._skips and len(self._rest) + len(data) > MAX_LINE_BYTES + 2:
            # What follows up to the line break is only counted.
            self._skips = True
            self._offset += len(self._rest)
            self._rest.clear()
        if self._skips:
            self._offset += len(data)
        else:
            self._rest += data

    def _take(self, data: bytes, *, ends: int) -> Iterator[NewLine]:
        """Take the last part of a line, which had so many bytes of a line break."""
        self._keep(data)
        text, start, was_skipped = bytes(self._rest), self._offset, self._skips
        self._offset += len(text) + ends
        self._rest.clear()
        self._skips = False
        if start == 0 and text.startswith(_BYTE_ORDER_MARK):
            text, start = text[len(_BYTE_ORDER_MARK) :], len(_BYTE_ORDER_MARK)
        self._number += 1
        line = text.removesuffix(b"\r")
        try:
            if was_skipped or len(line) > MAX_LINE_BYTES:
                raise _Malformed("line_too_large", f"a line may have {MAX_LINE_BYTES} bytes")
            if line.strip():
                custom_id, body = self._decode(line)
                self._check(custom_id, body)
                self.total += 1
                yield NewLine(self.total - 1, custom_id, start, len(line), prefix_of(body))
        except _Malformed as error:
            self.errors.append(LineError(error.code, str(error), self._number, error.param))

    def _decode(self, line: bytes) -> tuple[str, LineBody]:
        """Return the custom_id and the body. Raises _Malformed."""
        try:
            line.decode()
            body_values.ensure_few_values(line)
            value = msgspec.json.decode(line, type=_Line)
        except UnicodeDecodeError as error:
            raise _Malformed("invalid_encoding", "the line is not UTF-8") from error
        except body_values.TooManyValues as error:
            raise _Malformed("too_many_values", error.message, "body") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Malformed("invalid_json_line", "the line is no JSON object") from error
        custom_id = _text(value.custom_id)
        if custom_id is None or not 0 < len(custom_id) <= MAX_CUSTOM_ID or "\0" in custom_id:
            text = f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters without NUL"
            raise _Malformed("missing_required_parameter", text, "custom_id")
        if _text(value.method) != "POST":
            raise _Malformed("invalid_method", "method must be POST", "method")
        if _text(value.url) != self._endpoint:
            raise _Malformed("invalid_url", f"url must be {self._endpoint}, the endpoint of the batch", "url")
        try:
            return custom_id, read_body(value.body)
        except msgspec.DecodeError as error:
            raise _Malformed("missing_required_parameter", "body must be an object", "body") from error

    def _check(self, custom_id: str, body: LineBody) -> None:
        """Compare the line with those before. Raises _Malformed."""
        model = _text(body.model)
        if model is None or not 0 < len(model) <= MAX_MODEL or "\0" in model:
            text = f"the body must name a model, by 1 to {MAX_MODEL} characters without NUL"
            raise _Malformed("missing_required_parameter", text, "body.model")
        if bytes(body.stream) == b"true":
            raise _Malformed("streaming_not_supported", "a batch has no streams", "body.stream")
        self.model = self.model or ModelName(model)
        if model != self.model:
            raise _Malformed("mismatched_model", f"all lines must name the same model; the first is {self.model}", "body.model")
        key = blake2b(custom_id.encode(), digest_size=_ID_BYTES).digest()
        if (other := self._lines.setdefault(key, self._number)) != self._number:
            raise _Malformed("duplicate_custom_id", f"lines {other} and {self._number} have the same custom_id", "custom_id")
        self._inputs += _count(body.input) if self._endpoint == "/v1/embeddings" else 1
        if self._inputs > MAX_LINES:
            self._is_stopped = True
            raise _Malformed("too_many_lines", f"a batch may have {MAX_LINES:,} lines or inputs")


def read_body(body: Raw | bytes) -> LineBody:
    """Raises msgspec.DecodeError unless it is a JSON object."""
    return msgspec.json.decode(body, type=LineBody)


def prefix_of(body: LineBody) -> bytes:
    """Hash what comes before the first message of a user. Lines with the same hash run one after the other, so that it is computed once."""
    hashed = blake2b(digest_size=_ID_BYTES)
    for part in (body.model, body.system, body.instructions, body.tools):
        hashed.update(b"%d:" % len(bytes(part)))
        hashed.update(part)
    for message in _messages(body):
        if _text(message.role) not in {"system", "developer"}:
            break
        hashed.update(message.content)
    return hashed.digest()


def _messages(body: LineBody) -> list[_Message]:
    try:
        return msgspec.json.decode(body.messages, type=list[_Message])
    except msgspec.DecodeError:
        return []


def _text(value: Raw) -> str | None:
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return None


def _count(values: Raw) -> int:
    try:
        return len(msgspec.json.decode(values, type=list[Any]))
    except msgspec.DecodeError:
        return 1
