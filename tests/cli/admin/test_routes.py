"""`aicli admin routes`."""

from uuid import UUID

import click
import msgspec

from cli.admin import routes
from shared.api import configuration
from shared.api.configuration import ListRoutes, RouteState, RouteStates, RouteTargetState, TriedRoute, TriedTarget, TryRoute
from shared.config_documents import Sticky
from shared.types import MicroCredits, TenantId, Tier
from tests.cli.conftest import Shell

TARGETS = (
    RouteTargetState("local", "smollm2", 90.0, None, 2),
    RouteTargetState("next", "llama-3-8b", 10.0, None, 1, MicroCredits(250_000)),
    RouteTargetState("api", "openai/gpt-4o-mini", None, 1, 0, MicroCredits(1_500_000), MicroCredits(50_000_000)),
)
ROUTE = RouteState("assistant", 3, Sticky.CONVERSATION, TARGETS)


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_routes_are_listed_with_their_targets(shell: Shell) -> None:
    shell.mesh.answer(configuration.list_routes, RouteStates((ROUTE,)))
    text = " ".join(shell("admin", "routes", "list", "-o", "wide").stdout.split())
    assert "local (smollm2, 90 %), next (llama-3-8b, 10 %), api (openai/gpt-4o-mini, fallback 1, not served)" in text
    assert shell.mesh.calls[0].request == ListRoutes()


def test_one_route(shell: Shell) -> None:
    shell.mesh.answer(configuration.list_routes, RouteStates((ROUTE,)))
    assert lines(shell("admin", "routes", "show", "assistant", "-o", "wide").stdout)[1:] == [
        ["local", "smollm2", "90", "%", "–", "2", "–"],
        ["next", "llama-3-8b", "10", "%", "–", "1", "0.25"],
        ["api", "openai/gpt-4o-mini", "–", "1", "0", "1.5", "of", "50"],
    ]
    done = shell("admin", "routes", "show", "other")
    assert done.exit_code != 0
    assert "there is no route 'other'" in done.stderr


def test_the_cache_of_a_route_is_shown(shell: Shell) -> None:
    shell.mesh.answer(configuration.list_routes, RouteStates((msgspec.structs.replace(ROUTE, cache_seconds=90),)))
    assert shell("admin", "routes", "show", "assistant").stderr == "Identical requests of an organization get the same answer for 90 s.\n"


def test_a_try_shows_shares_and_reasons(shell: Shell) -> None:
    tried = (TriedTarget("local", "smollm2", 1804, None, ""), TriedTarget("next", "llama-3-8b", 0, None, "not_served"))
    shell.mesh.answer(configuration.try_route, TriedRoute("assistant", 3, tried, 196))
    options = ("--count", "2000", "--prompt-tokens", "3000", "--tools", "--tier", "pro", "--key", "ci")
    done = shell("admin", "routes", "try", "assistant", *options, "-o", "wide")
    assert lines(done.stdout)[1:] == [["local", "smollm2", "90.2", "%", "–", "–"], ["next", "llama-3-8b", "0", "%", "–", "not", "served"]]
    assert done.stderr == "9.8 % of the requests have no target and fail.\n"
    assert shell.mesh.calls[0].request == TryRoute("assistant", 2000, 3000, tools=True, tier=Tier.PRO, key_name="ci")
    team = TenantId(UUID(int=7))
    shell("admin", "routes", "try", "assistant", "--organization", str(team))
    assert shell.mesh.calls[-1].request == TryRoute("assistant", organization=team)


def test_the_limit_of_a_try_is_the_gateways() -> None:
    (field,) = (field for field in msgspec.structs.fields(TryRoute) if field.name == "count")
    info = msgspec.inspect.type_info(field.type)
    assert isinstance(info, msgspec.inspect.IntType)
    (option,) = (each for each in routes.routes.commands["try"].params if each.name == "count")
    assert isinstance(option.type, click.IntRange)
    assert info.le == option.type.max
