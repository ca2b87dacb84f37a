from datetime import UTC, datetime

import pytest

from services.web import alert_banner
from shared.api.alerts import Alert

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


def alert(
    summary: str = "No worker is up", severity: str = "page", state: str = "firing", *, seen_by: str = "", silenced: bool = False
) -> Alert:
    return Alert("1", "no_worker", severity, {}, state, NOW, None, 1.0, summary, "", "docs/runbooks/no_worker.md", seen_by, silenced)


@pytest.mark.parametrize(
    ("found", "words", "names"),
    [
        pytest.param([], "", "", id="nothing"),
        pytest.param([alert()], "1 alert:", "No worker is up", id="one"),
        pytest.param([alert(severity="critical")], "1 alert:", "No worker is up", id="a critical one"),
        pytest.param([alert(severity="warning"), alert(severity="ticket")], "", "", id="what can wait"),
        pytest.param([alert(state="pending"), alert(state="over")], "", "", id="what does not fire"),
        pytest.param([alert(seen_by="ada")], "", "", id="somebody looks after it"),
        pytest.param([alert(silenced=True)], "", "", id="it is silenced"),
        pytest.param([alert("A"), alert("B", seen_by="ada"), alert("C")], "2 alerts:", "A, C", id="two of three"),
        pytest.param([alert("A"), alert("A"), alert("B")], "3 alerts:", "A, B", id="the same words once"),
        pytest.param([alert(each) for each in "ABCDE"], "5 alerts:", "A, B, C, and 2 more", id="many"),
        pytest.param([alert(each) for each in "ABC"], "3 alerts:", "A, B, C", id="as many as are named"),
    ],
)
def test_banner_text(found: list[Alert], words: str, names: str) -> None:
    assert alert_banner.of(found) == alert_banner.AlertBanner(words=words, names=names)
    assert alert_banner.values(alert_banner.of(found)) == {"banner": words, "banner_names": names}
