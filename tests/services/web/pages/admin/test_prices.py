import re
from datetime import timedelta

import pytest

from services.web.pages.admin import prices
from shared import errors
from shared.api.gateway import ServedModel
from shared.api.ledger import ModelPrice
from shared.lists.prices import in_order, list_prices
from shared.types import MicroCredits, ModelName
from tests.services.web.browser import CONFIRM, Browser, forms_of
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/prices"


def price(model: str | None, input_: int = 0, output: int = 0, request: int = 0, second: int = 0, *, days_ago: int = 0) -> ModelPrice:
    named = None if model is None else ModelName(model)
    since = NOW - timedelta(days=days_ago)
    return ModelPrice(named, MicroCredits(input_), MicroCredits(output), MicroCredits(request), MicroCredits(second), since=since)


async def test_prices_are_shown_in_credits_with_an_example(root: Browser, mesh: AdminMesh) -> None:
    mesh.prices = [price(None, 100_000_000, 200_000_000)]
    text = (await root.get(PATH)).text
    cells = re.findall(r'data-label="([^"]+)">([^<]+)</td>', text)
    assert cells == [
        ("Input, per 1M tokens", "100"), ("Output, per 1M tokens", "200"),
        ("Per request", "0"), ("Per compute second", "0"), ("Plan tokens per token", "1"), ("Batch, % of the price", "50"),
        ("Example", "0.2"),
    ]  # fmt: skip
    assert "Default" in text
    assert f'<a href="{PATH}?model=smollm2#set">smollm2</a>' in text


async def test_model_without_a_price_links_to_its_form(root: Browser) -> None:
    page = await root.get(f"{PATH}?model=smollm2")
    assert forms_of(page)[PATH]["model"] == "smollm2"


async def test_model_with_a_price_is_not_listed_as_unpriced(root: Browser, mesh: AdminMesh) -> None:
    mesh.prices = [price(None, 1, 1), price("smollm2", 2, 2)]
    assert "Using the default price:" not in (await root.get(PATH)).text


async def test_price_history_is_shown_on_request(root: Browser, mesh: AdminMesh) -> None:
    mesh.prices, mesh.past_prices = [price("smollm2", 3_000_000, 0)], [price("smollm2", 7_770_000, 0, days_ago=3)]
    assert "7.77" not in (await root.get(PATH)).text
    text = (await root.get(f"{PATH}?history=yes")).text
    assert text.index(">3</td>") < text.index(">7.77</td>")
    assert text.count('<span class="state" data-state="off">Previous</span>') == 1


async def test_price_is_entered_per_million_tokens(root: Browser, mesh: AdminMesh) -> None:
    typed = {"model": " smollm2 ", "input": "100", "output": "0.5", "request": "", "compute_second": "0.000001", "weight": "0"}
    done = await root.submit(await root.get(PATH), PATH, **typed)
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}?done=set")
    assert mesh.prices == [
        ModelPrice(
            ModelName("smollm2"), MicroCredits(100_000_000), MicroCredits(500_000), compute_second_micro=MicroCredits(1), allowance_weight=0
        )
    ]
    assert "New requests use this price." in (await root.get(done.headers["location"])).text


@pytest.mark.parametrize(("typed", "weight"), [("", 1), (" ", 1), ("0", 0), (" 7 ", 7)])
def test_empty_weight_is_one(typed: str, weight: int) -> None:
    assert prices.read_price(prices.PriceForm(input="1", output="1", weight=typed)).allowance_weight == weight


async def test_default_is_the_price_without_a_model(root: Browser, mesh: AdminMesh) -> None:
    await root.submit(await root.get(PATH), PATH, input="1", output="2")
    assert [(each.model, each.allowance_weight) for each in mesh.prices] == [(None, 1)]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        pytest.param({"output": "1"}, "The input price is missing.", id="nothing typed"),
        pytest.param({"input": "1", "output": "cheap"}, "The output price: &#39;cheap&#39; is not an amount", id="no number"),
        pytest.param({"input": "-1", "output": "1"}, "The input price is negative.", id="below zero"),
        pytest.param(
            {"input": "1", "output": "1", "request": "0.0000001"},
            "The price per request: 0.0000001 has more than 6 decimals.",
            id="too fine",
        ),
        pytest.param({"input": "1", "output": "1", "weight": "1001"}, "The plan’s tokens per token", id="too heavy"),
        pytest.param({"input": "1", "output": "1", "weight": "half"}, "The plan’s tokens per token", id="no weight"),
        pytest.param({"input": "99999999", "output": "1"}, "The price of input tokens is out of range.", id="the gateway refuses"),
    ],
)
async def test_refused_price_keeps_the_input(root: Browser, mesh: AdminMesh, typed: dict[str, str], message: str) -> None:
    page = await root.submit(await root.get(PATH), PATH, model="smollm2", **typed)
    assert page.status_code == 400
    assert message in page.text
    fields = forms_of(page)[PATH]
    assert {name: fields[name] for name in typed} == typed
    assert fields["model"] == "smollm2"
    assert mesh.prices == []


async def test_missing_prices_and_models_are_reported(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["gateway.listModels"] = errors.NotReachable("no")
    text = (await root.get(PATH)).text
    assert "No prices yet" in text
    assert "The gateway isn’t responding, so we can’t list models without a price." in text
    mesh.broken["gateway"] = errors.NotReachable("no gateway is reachable")
    assert (await root.get(PATH)).status_code == 503


async def test_setting_a_price_is_sensitive_and_same_origin(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get(PATH)
    assert (await root.submit(page, PATH, {"Sec-Fetch-Site": "cross-site"}, input="1", output="1")).status_code == 403
    assert (await root.submit(page, PATH, token="forged", input="1", output="1")).status_code == 403
    mesh.is_stale = True
    confirm_page = await root.submit(page, PATH, input="1", output="2")
    assert CONFIRM in confirm_page.text
    assert mesh.prices == []


async def test_hostile_model_names_are_escaped(root: Browser, mesh: AdminMesh) -> None:
    mesh.prices = [price('"><script>alert(1)</script>', 1, 1)]
    for path in (PATH, f"{PATH}?model=%22%3E%3Cscript%3Ealert(1)"):
        text = (await root.get(path)).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text


# --- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "micro"),
    [
        pytest.param(price(None), 0, id="free"),
        pytest.param(price(None, 2_000_000), 2_000, id="1,000 tokens in at 2 credits a million"),
        pytest.param(price(None, 0, 2_000_000), 1_000, id="500 tokens out"),
        pytest.param(price(None, 1), 1, id="any part of a micro-credit is rounded up"),
        pytest.param(price(None, 0, 0, 7, 3), 22, id="a request and five seconds"),
    ],
)
def test_example_cost_equals_the_gateways_charge(price: ModelPrice, micro: int) -> None:
    assert prices.cost_of_example(price) == micro


def test_default_price_comes_first_and_history_after_current_prices() -> None:
    default, zeta, alpha = price(None, 1), price("zeta", 2), price("alpha", 3)
    older, oldest = price("alpha", 4, days_ago=1), price("alpha", 5, days_ago=2)
    found = sorted((zeta, oldest, alpha, older, default), key=in_order)
    assert found == [default, alpha, older, oldest, zeta]
    assert list(map(list_prices(found).is_over, found)) == [False, False, True, True, False]


def test_models_without_their_own_price_are_named() -> None:
    served = [ServedModel(ModelName(name), 1, 2048) for name in ("b", "a", "c")]
    assert prices.without_own(served, (price(None), price("c"))) == ("a", "b")
