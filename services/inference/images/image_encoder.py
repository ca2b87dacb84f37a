"""Turns the images of a prompt into tokens and their embeddings, by llama.cpp's libmtmd.

Only the engine's process imports this module. Not thread-safe: its thread reads one prompt at a time.
"""

import ctypes
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import llama_cpp.llama_cpp as native
import numpy as np
import numpy.typing as npt

from services.inference.images import image_library
from services.inference.images.image_library import IMAGE_CHUNK, TEXT_CHUNK, NativePart, NativeText
from services.inference.images.prompt_images import DecodedImage, ImageSpan
from shared import errors
from shared.api.generation import LONG_SIDE

#: Embeddings of images that come again, with each turn of a chat.
MAX_CACHED_BYTES = 256 * 2**20
#: Never an id of a vocabulary.
_FIRST_BIT = -(2**31)

Rows: TypeAlias = npt.NDArray[np.float32]
#: For M-RoPE: four coordinates of each row if the image is at position 0, and how much each grows with its position.
Grid: TypeAlias = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
Record: TypeAlias = Callable[[int, bytes, object], None]


class NotUsable(Exception):
    """The projector can't be used with the model; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRows:
    """The embeddings of an image, or of a part of one."""

    values: Rows
    grid: Grid | None

    def positions(self, start: int, begin: int, end: int) -> npt.NDArray[np.int32]:
        """Return those of the rows from ``begin`` to ``end`` of an image at ``start``, in llama.cpp's order."""
        if self.grid is None:
            return np.arange(start + begin, start + end, dtype=np.int32)
        origin, slope = self.grid
        return (origin + slope * start)[:, begin:end].ravel()


@dataclass(slots=True)
class PromptLayout:
    """The tokens of a prompt with images, before one is encoded."""

    #: One for each image.
    digests: Sequence[bytes]
    tokens: list[int] = field(default_factory=list)
    spans: list[ImageSpan] = field(default_factory=list)
    #: For each span the number of its image, and its coordinates.
    places: list[tuple[int, Grid | None]] = field(default_factory=list)


class ImageEncoder:
    def __init__(
        self, model: "native.llama_model_p", path: str, record: Record, why: Callable[[], str], *, threads: int, on_gpu: bool
    ) -> None:
        """``record`` gets the lines of the log, and ``why`` returns its errors. Raises NotUsable."""
        try:
            self._library = library = image_library.load()
        except (OSError, AttributeError) as error:
            raise NotUsable(f"llama.cpp's library for images can't be loaded: {error}") from error
        # It must outlive every native call that may log.
        self._callback = native.llama_log_callback(record)
        library.mtmd_log_set(self._callback, None)
        parameters = library.mtmd_context_params_default()
        parameters.use_gpu = on_gpu
        parameters.print_timings = parameters.warmup = False
        parameters.n_threads = threads
        self._context = library.mtmd_init_from_file(path.encode(), model, parameters)
        if not self._context:
            raise NotUsable(f"{path} does not fit the model: {why()}")
        if not library.mtmd_support_vision(self._context):
            library.mtmd_free(self._context)
            raise NotUsable(f"{path} is not for images")
        self._width = int(native.llama_model_n_embd_inp(model))
        self._has_grid = bool(library.mtmd_decode_use_mrope(self._context))
        #: The rows of an image see each other, and so must be in one batch.
        self.is_whole = bool(library.mtmd_decode_use_non_causal(self._context, None))
        self._cached: OrderedDict[tuple[str, bytes], tuple[Rows, ...]] = OrderedDict()
        self._cached_bytes = 0

    def free(self) -> None:
        self._library.mtmd_free(self._context)
        self._library.mtmd_log_set(native.llama_log_callback(0), None)

    def most_rows(self) -> int:
        """Return how many rows an image has that is as large as an image gets."""
        layout = self._lay_out([DecodedImage(LONG_SIDE, LONG_SIDE, b"")], [b""])
        return max((span.end - span.start for span in layout.spans), default=0)

    def lay_out(self, texts: Sequence[Sequence[str]], images: Sequence[DecodedImage], *, bos: int | None) -> PromptLayout:
        """Find all tokens of a prompt without looking at a pixel. The images are between its ``texts``, each of which is in parts
        (`special_tokens`). Raises BadRequest."""
        digests = [hashlib.sha256(b"%d %d " % (image.width, image.height) + image.rgb).digest() for image in images]
        parts: list[str | DecodedImage] = [*texts[0]]
        for text, image in zip(texts[1:], images, strict=True):
            parts += [DecodedImage(image.width, image.height, b""), *text]
        layout = self._lay_out(parts, digests)
        if bos is not None and layout.tokens[:1] != [bos]:
            layout.tokens.insert(0, bos)
            layout.spans = [replace(span, start=span.start + 1, end=span.end + 1) for span in layout.spans]
        if layout.spans and layout.spans[-1].end == len(layout.tokens):
            raise errors.BadRequest("messages: a text must follow the last image")
        return layout

    def encode(
        self, layout: PromptLayout, images: Sequence[DecodedImage], *, salt: str, is_wanted: Callable[[], bool]
    ) -> dict[int, ImageRows]:
        """Return the rows of each span, by its start. Raises BadRequest."""
        encoded = []
        for number, image in enumerate(images):
            if not is_wanted():
                raise errors.BadRequest("the request was canceled")
            encoded.append(iter(self._rows(image, salt, layout.digests[number], number)))
        rows = {}
        for span, (number, grid) in zip(layout.spans, layout.places, strict=True):
            values = next(encoded[number], None)
            if values is None or len(values) != span.end - span.start:
                raise _unreadable(number)
            rows[span.start] = ImageRows(values, grid)
        return rows

    def _lay_out(self, parts: Sequence[str | DecodedImage], digests: Sequence[bytes]) -> PromptLayout:
        layout = PromptLayout(digests)
        parts_of: dict[int, int] = {}
        with self._chunks(parts) as chunks:
            for chunk in chunks:
                if self._library.mtmd_input_chunk_get_type(chunk) == TEXT_CHUNK:
                    count = ctypes.c_size_t()
                    tokens = self._library.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                    layout.tokens += tokens[: count.value]
                else:
                    number = int(self._library.mtmd_input_chunk_get_id(chunk) or b"0")
                    part = parts_of[number] = parts_of.get(number, -1) + 1
                    self._add_image(layout, chunk, number, digests[number] + b"%d" % part)
        return layout

    def _add_image(self, layout: PromptLayout, chunk: int, number: int, digest: bytes) -> None:
        start, count = len(layout.tokens), int(self._library.mtmd_input_chunk_get_n_tokens(chunk))
        # Another image has other tokens, and so nothing of it is ever taken for this one.
        layout.tokens += [token | _FIRST_BIT for token in array("i", hashlib.shake_128(digest).digest(4 * count))]
        layout.spans.append(ImageSpan(start, start + count, int(self._library.mtmd_input_chunk_get_n_pos(chunk)), is_whole=self.is_whole))
        layout.places.append((number, self._grid(chunk, count) if self._has_grid else None))

    def _grid(self, chunk: int, count: int) -> Grid:
        tokens = self._library.mtmd_input_chunk_get_tokens_image(chunk)
        origin, next_one = (
            np.array([_coordinates(self._library.mtmd_image_tokens_get_decoder_pos(tokens, at, row)) for row in range(count)], np.int32).T
            for at in (0, 1)
        )
        return origin, next_one - origin

    def _rows(self, image: DecodedImage, salt: str, digest: bytes, number: int) -> tuple[Rows, ...]:
        """Encode an image, unless it was encoded recently for the same tenant."""
        key = (salt, digest)
        if salt and key in self._cached:
            self._cached.move_to_end(key)
            return self._cached[key]
        with self._chunks([image]) as chunks:
            rows = tuple(self._encoded(chunk, number) for chunk in chunks if self._library.mtmd_input_chunk_get_type(chunk) == IMAGE_CHUNK)
        size = sum(each.nbytes for each in rows)
        if salt and size <= MAX_CACHED_BYTES:
            self._cached[key] = rows
            self._cached_bytes += size
            while self._cached_bytes > MAX_CACHED_BYTES:
                _, dropped = self._cached.popitem(last=False)
                self._cached_bytes -= sum(each.nbytes for each in dropped)
        return rows

    def _encoded(self, chunk: int, number: int) -> Rows:
        if self._library.mtmd_encode_chunk(self._context, chunk):
            raise _unreadable(number)
        count = int(self._library.mtmd_input_chunk_get_n_tokens(chunk))
        return np.ctypeslib.as_array(self._library.mtmd_get_output_embd(self._context), (count, self._width)).copy()

    @contextmanager
    def _chunks(self, parts: Sequence[str | DecodedImage]) -> Iterator[Iterator[int]]:
        """Yield libmtmd's chunks of texts and images; one without pixels is only measured. Raises BadRequest."""
        library = self._library
        listed: list[NativePart] = []
        bitmaps: list[int] = []
        chunks = library.mtmd_input_chunks_init()
        try:
            for part in parts:
                if isinstance(part, str):
                    raw = part.encode("utf-8", "replace")
                    listed.append(NativePart(ctypes.pointer(NativeText(raw, len(raw), False, True)), None))
                else:
                    bitmap = library.mtmd_bitmap_init(part.width, part.height, part.rgb or None)
                    library.mtmd_bitmap_set_id(bitmap, b"%d" % len(bitmaps))
                    bitmaps.append(bitmap)
                    listed.append(NativePart(None, bitmap))
            array_of = (ctypes.POINTER(NativePart) * len(listed))(*map(ctypes.pointer, listed))
            if library.mtmd_tokenize_from_parts(self._context, chunks, array_of, len(listed), False):
                raise errors.BadRequest("messages: this model cannot read the images")
            yield iter([library.mtmd_input_chunks_get(chunks, at) for at in range(library.mtmd_input_chunks_size(chunks))])
        finally:
            library.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                library.mtmd_bitmap_free(bitmap)


def _coordinates(position: image_library.RowPosition) -> tuple[int, int, int, int]:
    # As libmtmd's own helper orders them for llama.cpp: the row is before the column.
    return position.t, position.y, position.x, position.z


def _unreadable(number: int) -> errors.BadRequest:
    return errors.BadRequest(f"image {number + 1}: this model's projector cannot read it", hint="send another size")
