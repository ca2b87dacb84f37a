"""Read and build the URL parameters of searchable, paginated lists. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode
from uuid import UUID

from shared import errors

ROWS_OF_A_PAGE = 100
_MAX_SEARCH = 200


@dataclass(frozen=True, slots=True)
class PagedSearch:
    search: str = ""
    #: The last row of the previous page; None for the first page.
    after: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pager:
    """Links to other pages of the list, with the same search."""

    newest: str
    older: str
    is_later_page: bool


def read(search: str, after: str) -> PagedSearch:
    """Read the parameters. Raises BadRequest for an invalid position."""
    try:
        place = UUID(after) if after else None
    except ValueError:
        raise errors.BadRequest("after is not a valid position in this list", hint="go back to the first page") from None
    return PagedSearch(search.replace("\0", "").strip()[:_MAX_SEARCH], place)


def pager(path: str, wanted: PagedSearch, last: UUID | None, *, more: bool) -> Pager:
    """Return the links. ``last`` is the last row of this page."""
    words = {"search": wanted.search} if wanted.search else {}
    older = address(path, {**words, "after": str(last)}) if more and last is not None else ""
    return Pager(newest=address(path, words), older=older, is_later_page=wanted.after is not None)


def address(path: str, words: Mapping[str, str]) -> str:
    """Return the path with these parameters, if any."""
    return f"{path}?{urlencode(words)}" if words else path
