"""Administrators list routes, and try them without running a request."""

from typing import Any

import pytest

from services.gateway.facts.config_snapshot import ConfigSnapshot, StoredDocument
from services.gateway.rpc_api.routes_rpc import RoutesRpc
from shared import errors
from shared.api.configuration import ListRoutes, TryRoute
from shared.api.ledger import ModelPrice
from shared.config_documents import ConfigKind, RouteDocument, TargetConditions, TargetDocument
from shared.types import MicroCredits
from tests.services.gateway.fakes import ALLOWING, OWNER, FakeDirectory, rpc_call

CALL = rpc_call(OWNER)


class Live:
    """Stands in for ``LiveConfiguration``, with these documents."""

    def __init__(self, **routes: tuple[TargetDocument, ...]) -> None:
        self.documents = {
            (ConfigKind.ROUTE, name): StoredDocument(7, 9, "applied", RouteDocument(targets=targets)) for name, targets in routes.items()
        }
        self.policies = ALLOWING
        self.documents[ConfigKind.ROUTE, "removed"] = StoredDocument(2, 3, "applied", None)

    @property
    def config(self) -> ConfigSnapshot:
        return ConfigSnapshot(policies=self.policies)


@pytest.fixture
def directory() -> FakeDirectory:
    found = FakeDirectory()
    found.worker(1, "a", "b")
    found.worker(2, "a")
    return found


SPENDING: dict[tuple[str, str], tuple[MicroCredits, MicroCredits]] = {}


def rpc(directory: FakeDirectory, **routes: tuple[TargetDocument, ...]) -> RoutesRpc:
    async def read_spending() -> dict[tuple[str, str], tuple[MicroCredits, MicroCredits]]:
        return SPENDING

    live: Any = Live(**routes)
    return RoutesRpc(live, directory, read_spending, lambda model: ModelPrice(model, MicroCredits(100), MicroCredits(200)))


async def test_routes_are_listed_with_their_workers(directory: FakeDirectory) -> None:
    alias = (TargetDocument(name="main", model="b"),)
    both = (TargetDocument(name="x", model="a", share=100), TargetDocument(name="y", model="away", order=1))
    listed = (await rpc(directory, z=both, alias=alias).list_routes(ListRoutes(), CALL)).routes
    assert [(route.name, route.version) for route in listed] == [("alias", 7), ("z", 7)]
    assert [(one.name, one.model, one.share, one.order, one.workers) for one in listed[1].targets] == [
        ("x", "a", 100, None, 2), ("y", "away", None, 1, 0)
    ]  # fmt: skip


async def test_the_cache_of_a_route_is_listed(directory: FakeDirectory) -> None:
    routes_rpc = rpc(directory, off=(TargetDocument(name="x", model="a"),))
    targets = (TargetDocument(name="x", model="a"),)
    for name, more in (("hour", {}), ("minute", {"cache_seconds": 60})):
        document = RouteDocument(targets=targets, cache="same_request", **more)
        routes_rpc.live.documents[ConfigKind.ROUTE, name] = StoredDocument(1, 1, "applied", document)  # type: ignore[index]
    listed = (await routes_rpc.list_routes(ListRoutes(), CALL)).routes
    assert {route.name: route.cache_seconds for route in listed} == {"off": None, "hour": 3600, "minute": 60}


async def test_a_try_counts_what_is_tried_first(directory: FakeDirectory) -> None:
    when = TargetConditions(tools=True)
    targets = (
        TargetDocument(name="a", model="a", share=60), TargetDocument(name="b", model="b", share=30, when=when),
        TargetDocument(name="gone", model="away", share=10), TargetDocument(name="last", model="a", order=5),
    )  # fmt: skip
    tried = await rpc(directory, r=targets).try_route(TryRoute("r", count=10_000, tools=True), CALL)
    counts = {one.name: one.first for one in tried.targets}
    assert (sum(counts.values()), tried.refused, tried.version) == (10_000, 0, 7)
    for name, share in (("a", 6000), ("b", 3000), ("gone", 0), ("last", 1000)):
        assert abs(counts[name] - share) < 200
    assert {one.name: (one.fallback, one.reason) for one in tried.targets} == {
        "a": (None, ""), "b": (None, ""), "gone": (None, "not_served"), "last": (1, ""),
    }  # fmt: skip
    without = await rpc(directory, r=targets[:3]).try_route(TryRoute("r", count=10_000), CALL)
    assert {one.name: one.reason for one in without.targets} == {"a": "", "b": "condition", "gone": "not_served"}
    assert without.refused == 10_000 - next(one.first for one in without.targets if one.name == "a")
    with pytest.raises(errors.NotFound, match="there is no route 'other'"):
        await rpc(directory).try_route(TryRoute("other"), CALL)
