"""Reads a form with one file and a few short fields, however its bytes are split. Pure."""

from collections.abc import Collection, Iterator

import multipart

from services.gateway.facts.bad_field import BadField

FILE = "file"
MAX_NAME_BYTES = 255
_MAX_VALUE_BYTES = 1024
#: A name of 255 bytes, each percent-encoded, twice.
_MAX_HEADER_BYTES = 4096


class UploadForm:
    """Feed it the body, then ``close`` it. Everything that is wrong raises BadField with the part."""

    def __init__(self, content_type: bytes, fields: Collection[str]) -> None:
        kind, options = multipart.parse_options_header(content_type.decode("latin-1"))
        if kind != "multipart/form-data" or not options.get("boundary"):
            raise BadField("Content-Type", "must be multipart/form-data with a boundary")
        self._known = fields
        self._parser = multipart.PushMultipartParser(options["boundary"], max_header_size=_MAX_HEADER_BYTES)
        #: The part that is being read.
        self._part = ""
        self._value = bytearray()
        self.fields: dict[str, str] = {}
        #: None until its part has begun.
        self.file_name: str | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bytes of the file."""
        try:
            for event in self._parser.parse(data) if data else ():
                if isinstance(event, multipart.MultipartSegment):
                    self._begin(event)
                elif event is None:
                    self._end()
                elif self._part == FILE:
                    yield bytes(event)
                else:
                    self._value += event
                    if len(self._value) > _MAX_VALUE_BYTES:
                        raise BadField(self._part, f"has more than {_MAX_VALUE_BYTES} bytes")
        except multipart.MultipartError as error:
            raise self._malformed(error) from error

    def close(self) -> None:
        try:
            self._parser.close()
        except multipart.MultipartError as error:
            raise self._malformed(error) from error
        if self.file_name is None:
            raise BadField(FILE, "is missing: send it as a part with a file name")

    def _begin(self, segment: multipart.MultipartSegment) -> None:
        self._part = name = segment.name
        if name != FILE and name not in self._known:
            raise BadField(name[:100], f"is not a part of this form; it has {', '.join((FILE, *self._known))}")
        if name in self.fields or (name == FILE and self.file_name is not None):
            raise BadField(name, "occurs twice; send one file with a request")
        if name == FILE:
            self.file_name = check_name(segment.filename)
        elif segment.filename is not None:
            raise BadField(name, "must be a value, not a file")

    def _end(self) -> None:
        if self._part != FILE:
            try:
                self.fields[self._part] = self._value.decode()
            except UnicodeDecodeError:
                raise BadField(self._part, "is not UTF-8") from None
            self._value.clear()

    def _malformed(self, error: multipart.MultipartError) -> BadField:
        what = "ends too early, or is not multipart/form-data" if isinstance(error, multipart.ParserError) else "can't be read"
        return BadField(self._part or "body", f"{what}: {error}")


def check_name(name: str | None) -> str:
    """Return the name of a file. Raises BadField for a path, and for what no system shows."""
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise BadField(FILE, f"needs a file name of 1 to {MAX_NAME_BYTES} bytes")
    if "/" in name or "\\" in name or name in {".", ".."} or not name.isprintable():
        raise BadField(FILE, "has a file name with a path or with characters that can't be printed; send the name alone")
    return name
