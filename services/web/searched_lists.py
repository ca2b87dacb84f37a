"""Long lists of which a page is shown, with a search in all of it: what stands in their addresses. Pure."""

from dataclasses import dataclass
from urllib.parse import urlencode
from uuid import UUID

from shared import errors

ROWS_OF_A_PAGE = 100
_LONGEST_SEARCH = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    search: str = ""
    #: The last row of the page before; None for the first page.
    after: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pager:
    """Where else the list may be read, by the same search."""

    newest: str
    #: Empty at the list's end.
    older: str
    is_later_page: bool


def read(search: str, after: str) -> Wanted:
    """Raises BadRequest for a place that is none."""
    try:
        place = UUID(after) if after else None
    except ValueError:
        raise errors.BadRequest("after: no place in this list", hint="begin with its first page again") from None
    return Wanted(search.replace("\0", "").strip()[:_LONGEST_SEARCH], place)


def pager(path: str, wanted: Wanted, last: UUID | None, *, more: bool) -> Pager:
    """``last`` is the last row of this page."""
    words = {"search": wanted.search} if wanted.search else {}
    older = _address(path, {**words, "after": str(last)}) if more and last is not None else ""
    return Pager(newest=_address(path, words), older=older, is_later_page=wanted.after is not None)


def _address(path: str, words: dict[str, str]) -> str:
    return f"{path}?{urlencode(words)}" if words else path
