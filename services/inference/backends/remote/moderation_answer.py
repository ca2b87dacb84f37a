"""Builds requests for OpenAI's POST /moderations, and checks their responses.  Pure."""

import msgspec

from services.inference.backends.remote.event_stream import BadStream
from shared.api.inference import CategoryName, ModerationVerdict, Score

PATH = "/moderations"
#: 32 results with 13 categories and long numbers have 50 KB.
MOST_BYTES = 1024 * 1024


class _Result(msgspec.Struct, frozen=True):
    flagged: bool
    #: OpenAI writes null for categories that don't apply to the input.
    categories: dict[CategoryName, bool | None] = {}
    category_scores: dict[CategoryName, Score | None] = {}


class _Moderation(msgspec.Struct, frozen=True):
    results: tuple[_Result, ...]


_moderation = msgspec.json.Decoder(_Moderation)


def body(model: str, texts: tuple[str, ...]) -> bytes:
    return msgspec.json.encode({"model": model, "input": texts})


def read(content: bytes, count: int) -> tuple[ModerationVerdict, ...]:
    """Return a verdict for each of ``count`` texts. Raises BadStream or one of `event_stream.UNREADABLE`."""
    results = _moderation.decode(content).results
    if len(results) != count:
        raise BadStream(f"{len(results)} results for {count} texts")
    return tuple(map(_verdict, results))


def _verdict(result: _Result) -> ModerationVerdict:
    flagged = tuple(name for name, is_flagged in result.categories.items() if is_flagged)
    scores = {name: score for name, score in result.category_scores.items() if score is not None}
    # Other servers send flags without scores.
    missing = {name: float(bool(is_flagged)) for name, is_flagged in result.categories.items() if name not in result.category_scores}
    return ModerationVerdict(result.flagged, flagged, scores | missing)
