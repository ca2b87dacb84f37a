import re

import msgspec
import pytest

from shared import errors
from shared.api.business import BusinessSum
from tests.services.web.browser import Browser
from tests.services.web.pages.admin import fake_report
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/cost"


def values(text: str) -> dict[str, str]:
    return dict(re.findall(r'<input id="(\w+)" name="\w+" value="([^"]*)"', text))


async def test_the_documents_numbers_are_the_default(root: Browser, mesh: AdminMesh) -> None:
    text = (await root.get(PATH)).text
    assert "Break-even: 16,544 conversations a month." in text
    assert (values(text)["hourly"], values(text)["fixed"], len(values(text))) == ("0.54", "833", 12)
    rows = re.findall(r'<th scope="row">([^<]+)</th><td class="n">([^<]+)</td><td class="n">([^<]+)</td><td class="n">([^<]+)</td>', text)
    assert (len(rows), rows[0], rows[-1][0]) == (68, ("0", "1,227.20", "400", "1"), "33,500")
    assert {row[3] for row in rows} == {"1", "2"}, "a further machine is a step"
    assert not mesh.requests_of("gateway.getBusinessReport")


async def test_typed_numbers_are_used_and_kept(root: Browser) -> None:
    text = (await root.get(f"{PATH}?hourly=2.86&kwh=")).text
    assert "Machines of your own never cost less than the API." in text
    assert (values(text)["hourly"], values(text)["kwh"]) == ("2.86", "0")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("kwh=%3Cb%3E", "Price of a kWh: &#39;&lt;b&gt;&#39; is not a number"),
        ("utilization=2", "Utilization: must be at most 1"),
        ("output_tokens=0", "Output per conversation: must be above 0"),
        ("output_tokens=1e9", "less than one conversation a month"),
        ("mesh=30d&api_input=-1", "is not a number from 0"),
    ],
)
async def test_a_wrong_number_is_named_and_kept(root: Browser, query: str, said: str) -> None:
    text = (await root.get(f"{PATH}?{query}")).text
    assert said in text
    assert text.count('aria-invalid="true"') == 1
    assert "data-chart" not in text


async def test_this_mesh_fills_in_its_tokens(root: Browser, mesh: AdminMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (await root.get(f"{PATH}?mesh=30d&hourly=1")).text
    assert (values(text)["input_tokens"], values(text)["output_tokens"], values(text)["hourly"]) == ("1719.9", "737.1", "1")
    assert "Your mesh has about 407 conversations in 30 days" in text
    mesh.broken["gateway.getBusinessReport"] = errors.NotReachable("no gateway is reachable")
    assert (await root.get(f"{PATH}?mesh=30d")).status_code == 503
    del mesh.broken["gateway.getBusinessReport"]
    monkeypatch.setattr(fake_report, "SUM", msgspec.structs.replace(BusinessSum(), succeeded=1))
    text = (await root.get(f"{PATH}?mesh=30d")).text
    assert "Nobody has used this mesh in the last 30 days" in text
    assert values(text)["input_tokens"] == "8000"
