"""The usage export on the page of sales."""

from features.usage_export.contract import SinkExcess, UsageSink
from shared.types import MicroCredits
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/money"
EXCESS = SinkExcess(events=1, tokens=2, uncovered_tokens=2, cost_micro=MicroCredits(2_500_000), found_at=NOW, accounts=())


async def test_the_export_of_usage_is_shown(root: Browser, mesh: AdminMesh) -> None:
    assert "Usage export" not in (await root.get(PATH)).text
    mesh.sinks = (
        UsageSink("good", NOW, 0, 0.0, sent_at=NOW, compared_at=NOW, excess=EXCESS),
        UsageSink("late", NOW, 1234, 90.0, difference_tokens=7, difference_micro=MicroCredits(-1_500_000)),
        UsageSink("bad<b>", NOW, 1, 5.0, error="503 <b>"),
    )
    text = (await root.get(PATH)).text
    for words in ("Usage export", "Up to date", "1,234 waiting", ">7<", ">-1.5<", ">2<", ">2.5<", "503 &lt;b&gt;", "bad&lt;b&gt;"):
        assert words in text, words
