"""The latest log lines wait for a reader; the buffer is bounded without one, and some lines never leave the process."""

import json

import pytest

from shared.telemetry import log_buffer, logs
from shared.telemetry.ring_buffer import RingBuffer, RingReading


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_buffer, "_kept", RingBuffer(log_buffer.MAX_KEPT))


@pytest.mark.parametrize("layout", ["json", "text"])
def test_lines_are_kept_as_json_whatever_is_shown(layout: str) -> None:
    logs.configure("auth", node="UABC", format=layout)
    logs.get().info("user registered", tier="free", password="hunter2")
    [line] = log_buffer.read(0).items
    assert json.loads(line).items() >= {"event": "user registered", "tier": "free", "service": "auth", "password": "[redacted]"}.items()


def test_what_is_for_here_alone_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth")
    logs.get().info("a letter", text="the code is 123", _only_here=True)
    assert log_buffer.read(0).items == ()
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == "the code is 123"
    assert "_only_here" not in shown


def test_a_reader_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_buffer, "MAX_READ", 2)
    for number in range(5):
        log_buffer.add(str(number))
    first = log_buffer.read(0)
    second = log_buffer.read(first.next)
    assert (first.items, second.items, log_buffer.read(second.next).items) == (("0", "1"), ("2", "3"), ("4",))
    assert log_buffer.read(5).items == ()
    assert log_buffer.read(1000).items == ("0", "1"), "this process has begun anew since that reader was here"


def test_the_oldest_go_and_the_reader_hears_how_many() -> None:
    for number in range(log_buffer.MAX_KEPT + 10):
        log_buffer.add(str(number))
    batch = log_buffer.read(4)
    assert (batch.items[0], batch.lost) == ("10", 6)
    assert len(log_buffer._kept) == log_buffer.MAX_KEPT


def test_a_line_without_end_is_not_kept() -> None:
    log_buffer.add("x" * (log_buffer.MAX_LINE + 1))
    assert log_buffer.read(0) == RingReading((), 0, 0)
