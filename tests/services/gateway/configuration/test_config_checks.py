"""Mistakes between documents, and what a change may have overlooked."""

from services.gateway.configuration import config_checks
from shared.api.configuration import ConfigKind, DefaultModelDocument, Document, ModelLimitDocument, RouteDocument, TargetDocument
from shared.types import ModelName


def route(model: str) -> RouteDocument:
    return RouteDocument(targets=(TargetDocument(name="main", model=model),))


def together(**routes: str) -> list[str]:
    return list(config_checks.check_together({(ConfigKind.ROUTE, name): route(model) for name, model in routes.items()}))


def test_a_target_is_never_a_route() -> None:
    assert together(a="m", b="m") == []
    assert together(a="a") == [], "a route may have the name of its model"
    assert together(a="b", b="m") == ["routes.a.targets[0].model: b is a route; name a served model"]


def test_limits_belong_to_models() -> None:
    documents: dict[tuple[ConfigKind, str], Document] = {
        (ConfigKind.ROUTE, "a"): route("m"),
        (ConfigKind.MODEL_LIMIT, "a"): ModelLimitDocument(),
    }
    assert list(config_checks.check_together(documents)) == ["model_limits.a: it is a route to m; limit that model instead"]
    del documents[ConfigKind.ROUTE, "a"]
    assert list(config_checks.check_together(documents)) == []


def test_the_number_of_routes_is_bounded() -> None:
    assert together(**{f"r{number}": "m" for number in range(500)}) == []
    assert together(**{f"r{number}": "m" for number in range(501)}) == ["routes: there would be 501; the limit is 500"]


def test_warnings_about_models_that_nobody_serves() -> None:
    changes: dict[tuple[ConfigKind, str], Document | None] = {
        (ConfigKind.ROUTE, "a"): route("m"), (ConfigKind.ROUTE, "b"): route("away"), (ConfigKind.ROUTE, "c"): None,
        (ConfigKind.DEFAULT_MODEL, "default"): DefaultModelDocument(model="gone"),
    }  # fmt: skip
    assert list(config_checks.warnings(changes, ["a", "b"], [ModelName("m")])) == [
        "route b: no worker serves away now", "default model: no worker serves gone now, and no route has this name"
    ]  # fmt: skip
    for known in ("m", "a"):
        changes = {(ConfigKind.DEFAULT_MODEL, "default"): DefaultModelDocument(model=known)}
        assert list(config_checks.warnings(changes, ["a", "b"], [ModelName("m")])) == []
