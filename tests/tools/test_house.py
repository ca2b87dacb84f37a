import pytest

from shared import features
from shared.features import Feature
from tools import house


def test_who_takes_a_feature_away_takes_those_that_need_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "files": Feature(),
        "mails": Feature(),
        "jobs": Feature(needs=frozenset({"files"})),
        "runs": Feature(needs=frozenset({"jobs"})),
    }
    monkeypatch.setattr(features, "known", lambda: known)
    assert house.with_dependents(["files"]) == ["files", "jobs", "runs"]
    assert house.with_dependents(["mails"]) == ["mails"]
