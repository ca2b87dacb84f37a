"""The latest lines wait for whoever collects them; nothing grows where nobody does, and some stay here."""

import json

import pytest

from shared.rings import Reading, Ring
from shared.telemetry import kept_lines, logs


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_lines, "_kept", Ring(kept_lines.MAX_KEPT))


@pytest.mark.parametrize("layout", ["json", "text"])
def test_lines_are_kept_as_json_whatever_is_shown(layout: str) -> None:
    logs.configure("auth", node="UABC", format=layout)
    logs.get().info("user registered", tier="free", password="hunter2")
    [line] = kept_lines.read(0).items
    assert json.loads(line).items() >= {"event": "user registered", "tier": "free", "service": "auth", "password": "[redacted]"}.items()


def test_what_is_for_here_alone_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth")
    logs.get().info("a letter", text="the code is 123", _only_here=True)
    assert kept_lines.read(0).items == ()
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == "the code is 123"
    assert "_only_here" not in shown


def test_a_reader_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_lines, "MAX_READ", 2)
    for number in range(5):
        kept_lines.add(str(number))
    first = kept_lines.read(0)
    second = kept_lines.read(first.next)
    assert (first.items, second.items, kept_lines.read(second.next).items) == (("0", "1"), ("2", "3"), ("4",))
    assert kept_lines.read(5).items == ()
    assert kept_lines.read(1000).items == ("0", "1"), "this process has begun anew since that reader was here"


def test_the_oldest_go_and_the_reader_hears_how_many() -> None:
    for number in range(kept_lines.MAX_KEPT + 10):
        kept_lines.add(str(number))
    batch = kept_lines.read(4)
    assert (batch.items[0], batch.lost) == ("10", 6)
    assert len(kept_lines._kept) == kept_lines.MAX_KEPT


def test_a_line_without_end_is_not_kept() -> None:
    kept_lines.add("x" * (kept_lines.MAX_LINE + 1))
    assert kept_lines.read(0) == Reading((), 0, 0)
