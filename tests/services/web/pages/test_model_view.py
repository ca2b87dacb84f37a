from datetime import UTC, datetime

import pytest

from services.web.pages import model_view
from shared.api.gateway import NodeRow, ServedModel
from shared.api.ledger import ModelPrice
from shared.api.metrics import History, HistoryLine
from shared.types import MicroCredits, ModelName, NodeId, Role

SMOL, BIG = ModelName("smollm2"), ModelName("mistral")
SERVED = ServedModel(SMOL, 1, 2048, aliases=("small",))


def worker(name: str, *models: ModelName, why_not: str = "", alive: bool = True, running: int = 0, role: Role = Role.WORKER) -> NodeRow:
    return NodeRow(
        NodeId(name), role, "inference", "nats", alive, alive and not why_not, why_not, models, datetime(2026, 11, 20, tzinfo=UTC), "1",
        running, 2 if running else 0, 4, labels={"room": "3", "gpu": "a100"},
    )  # fmt: skip


def price(model: ModelName | None, input_micro: int, output_micro: int, request: int = 0, second: int = 0) -> ModelPrice:
    return ModelPrice(model, MicroCredits(input_micro), MicroCredits(output_micro), MicroCredits(request), MicroCredits(second))


def test_served_model_lists_its_workers_least_busy_first() -> None:
    nodes = [
        worker("UBUSY", SMOL, running=3),
        worker("UIDLE", SMOL),
        worker("UBAD", SMOL, why_not="its clock is off"),
        worker("UOTHER", BIG),
    ]
    (line,) = model_view.join([SERVED], nodes, [], unserved_too=False)
    assert (line.name, line.aliases, line.context_tokens, line.state, line.tone, line.workers) == (
        SMOL,
        ("small",),
        2048,
        "OK",
        "good",
        1,
    )
    assert [(place.id, place.load, place.why_not) for place in line.places] == [
        ("UIDLE", "0 of 4 busy", ""),
        ("UBUSY", "3 of 4 busy, 2 queued", ""),
        ("UBAD", "0 of 4 busy", "its clock is off"),
    ]
    assert line.places[0].labels == ("gpu=a100", "room=3")


@pytest.mark.parametrize(
    ("row", "state", "why"),
    [
        pytest.param(worker("U1", BIG), "Degraded", "the engine is loading, restarting or failed", id="usable, but not served"),
        pytest.param(worker("U1", BIG, why_not="it drains"), "Down", "it drains", id="not usable"),
    ],
)
def test_unserved_models_are_shown_to_those_who_can_load_them(row: NodeRow, state: str, why: str) -> None:
    assert model_view.join([], [row], None, unserved_too=False) == ()
    (line,) = model_view.join([], [row], None, unserved_too=True)
    assert (line.name, line.state, line.why, line.workers, line.context_tokens) == (BIG, state, why, 0, None)


def test_gone_machines_and_other_services_have_no_models() -> None:
    nodes = [worker("U1", BIG, alive=False), worker("U2", BIG, role=Role.GATEWAY)]
    assert model_view.join([], nodes, None, unserved_too=True) == ()


def test_price_is_the_models_own_or_the_default() -> None:
    default_price = price(None, 100_000, 200_000)
    (line,) = model_view.join([SERVED], None, [default_price], unserved_too=False)
    assert line.price == model_view.ModelPriceView("0.1", "0.2", "")
    own = price(SMOL, 2_500_000, 7_500_000, request=100, second=20)
    (line,) = model_view.join([SERVED], None, [default_price, own], unserved_too=False)
    assert line.price == model_view.ModelPriceView("2.5", "7.5", "0.0001 per request, 0.00002 per compute second")


def test_share_of_accepted_drafts_is_shown_for_each_model() -> None:
    rates = [(SMOL, "accepted", (0.5, None, 0.25)), (SMOL, "rejected", (0.25, 0.0, 0.0)), (BIG, "rejected", (0.0, None, 0.0))]
    lines = tuple(HistoryLine("ai_platform_drafted_tokens_total", {"model": name, "result": result}, rate) for name, result, rate in rates)
    history = History(datetime(2026, 11, 20, tzinfo=UTC), 300, 15, lines)
    one, other = model_view.join([SERVED, ServedModel(BIG, 1, 2048)], None, None, history, unserved_too=False)
    assert (one.drafts, other.drafts) == ("75% of 300 drafted tokens accepted in the last hour", "")
    (line,) = model_view.join([SERVED], None, None, unserved_too=False)
    assert line.drafts == ""


def test_model_is_shown_without_nodes_and_prices() -> None:
    (line,) = model_view.join([SERVED], None, None, unserved_too=True)
    assert (line.name, line.places, line.price) == (SMOL, (), None)
