"""gateway and auth: items of background work that failed and were put aside."""

from typing import Annotated

import msgspec

from shared.api.method import PEOPLE, PEOPLE_OR_GATEWAY, Body, Method
from shared.types import Moment

MAX_LISTED = 500
_Text = Annotated[str, msgspec.Meta(max_length=200)]


class ListDeferredItems(Body, frozen=True):
    """For administrators."""

    kind: _Text | None = None


class DeferredItem(Body, frozen=True, omit_defaults=False):
    #: The service whose background work failed.
    service: str
    kind: str
    id: str
    #: How often it has failed since somebody retried it.
    tries: int
    #: None: it rests until somebody retries it.
    next_at: Moment | None
    #: What failed and where in the code, without the contents of the item.
    error: str
    #: Since when it has failed.
    since: Moment


class DeferredItems(Body, frozen=True, omit_defaults=False):
    #: The oldest first, at most 500.
    items: tuple[DeferredItem, ...]


class RetryDeferredItems(Body, frozen=True):
    """Try items again at the next round: one, all of a kind, or all."""

    kind: _Text | None = None
    id: _Text | None = None


def name_of(request: RetryDeferredItems) -> str:
    """Return what is tried again, for the audit log."""
    return "/".join(each for each in (request.kind, request.id) if each is not None) or "all"


class RetriedItems(Body, frozen=True, omit_defaults=False):
    #: How many are tried again.
    items: int


list_of_gateway = Method("gateway.listDeferredItems", ListDeferredItems, DeferredItems, callers=PEOPLE)
retry_at_gateway = Method("gateway.retryDeferredItems", RetryDeferredItems, RetriedItems, callers=PEOPLE)
list_of_auth = Method("auth.listDeferredItems", ListDeferredItems, DeferredItems, callers=PEOPLE_OR_GATEWAY)
retry_at_auth = Method("auth.retryDeferredItems", RetryDeferredItems, RetriedItems, callers=PEOPLE_OR_GATEWAY)
