"""The list of routes; of one route, its targets, and where requests would go."""

from shared.amounts import written
from shared.api.configuration import RouteState, RouteTargetState, TriedRoute, TriedTarget
from shared.lists.columns import Column, Listing, percent


def _describe(target: RouteTargetState) -> str:
    share = None if target.share is None else percent(target.share)
    fallback = None if target.order is None else f"fallback {target.order}"
    return f"{target.name} ({', '.join(filter(None, (target.model, share, fallback, '' if target.workers else 'not served')))})"


def _spent(target: RouteTargetState) -> str | None:
    if target.ceiling_micro is None:
        return written(target.spent_micro) if target.spent_micro else None
    return f"{written(target.spent_micro)} of {written(target.ceiling_micro)}"


ROUTES: Listing[RouteState] = Listing(
    columns=(
        Column(title="Route", show=lambda route: route.name, wraps=True),
        Column(title="Targets", show=lambda route: tuple(map(_describe, route.targets)), wraps=True),
        Column(title="Sticky by", show=lambda route: route.sticky, rank=4),
        Column(title="Version", show=lambda route: route.version, rank=3, is_number=True),
    ),
    empty="No routes. Callers name the served models directly.",
)
TARGETS: Listing[RouteTargetState] = Listing(
    columns=(
        Column(title="Target", show=lambda target: target.name, wraps=True),
        Column(title="Model", show=lambda target: target.model, wraps=True),
        Column(title="Share", show=lambda target: None if target.share is None else percent(target.share), is_number=True),
        Column(title="Fallback", show=lambda target: target.order, rank=2, is_number=True),
        Column(title="Workers", show=lambda target: target.workers, rank=3, is_number=True),
        Column(title="Upstream today", show=_spent, rank=4, is_number=True),
    ),
    empty="No targets.",
)


def list_tried(count: int) -> Listing[TriedTarget]:
    """Return the list of what so many requests tried."""
    return Listing(
        columns=(
            Column(title="Target", show=lambda target: target.name, wraps=True),
            Column(title="Model", show=lambda target: target.model, rank=2, wraps=True),
            Column(title="Tried first", show=lambda target: percent(100 * target.first / count), is_number=True),
            Column(title="Fallback", show=lambda target: target.fallback, rank=3, is_number=True),
            Column(title="Not used because", show=lambda target: target.reason.replace("_", " ") or None, wraps=True),
        ),
        empty="No targets.",
    )


def refused(tried: TriedRoute, count: int) -> str:
    return f"{percent(100 * tried.refused / count)} of the requests have no target and fail." if tried.refused else ""
