"""When an email is due and what it contains: no clock, no event loop, no mail server."""

import pytest

from services.metrics.alerting import mail_batching
from services.metrics.alerting.alert_state import AlertNotice
from services.metrics.alerting.mail_batching import GATHER_SECONDS, MOST_AN_HOUR, MOST_WAITING, MailBatching
from services.metrics.alerting.rules.alert_rule import Severity
from tests.services.metrics.alerting.sample_alerts import NOON, alert, began, ended


@pytest.mark.parametrize("severity", [Severity.PAGE, Severity.CRITICAL])
def test_pages_are_sent_immediately_with_everything_queued(severity: Severity) -> None:
    rounds = MailBatching()
    rounds.note(began(alert("slow", Severity.WARNING)), 0)
    assert rounds.take_due(1) is None
    rounds.note(began(alert("gone", severity)), 1)
    assert rounds.seconds_to_wait(1) == 0
    due = rounds.take_due(1)
    assert due is not None
    assert [one.summary for one in due.began] == ["gone", "slow"]
    assert (rounds.take_due(1), rounds.seconds_to_wait(1), len(rounds)) == (None, None, 0)


@pytest.mark.parametrize("severity", [Severity.WARNING, Severity.TICKET])
def test_warnings_are_batched_with_a_fixed_delay(severity: Severity) -> None:
    rounds = MailBatching()
    rounds.note(began(alert("a", severity)), 0)
    rounds.note(began(alert("b", severity)), GATHER_SECONDS - 1)
    assert rounds.seconds_to_wait(GATHER_SECONDS - 1) == 1
    due = rounds.take_due(GATHER_SECONDS)
    assert due is not None
    assert len(due.began) == 2


def test_resolutions_are_batched_and_cancel_an_unsent_start() -> None:
    rounds = MailBatching()
    rounds.note(began(alert("slow", Severity.WARNING)), 0)
    rounds.note(ended(alert("slow", Severity.WARNING, ended=NOON + 60), alert("gone", ended=NOON + 60)), 60)
    assert rounds.take_due(60) is None
    due = rounds.take_due(GATHER_SECONDS)
    assert due is not None
    assert (due.began, [one.summary for one in due.ended]) == ((), ["gone", "slow"])


def test_empty_notice_sends_no_mail() -> None:
    rounds = MailBatching()
    rounds.note(AlertNotice(), 0)
    assert (rounds.take_due(1e9), rounds.seconds_to_wait(0)) == (None, None)


def test_storm_is_limited_per_hour_and_the_last_mail_says_when_the_next_comes() -> None:
    rounds, sent = MailBatching(), []
    for second in range(3600):
        rounds.note(began(alert(f"number {second}")), second)
        if (due := rounds.take_due(second)) is not None:
            sent.append(due)
    assert len(sent) == MOST_AN_HOUR
    assert [due.pause_seconds is not None for due in sent] == [False] * (MOST_AN_HOUR - 1) + [True]
    assert sent[-1].pause_seconds == 3600 - (MOST_AN_HOUR - 1)
    assert rounds.seconds_to_wait(3599) == 1
    late = rounds.take_due(3600)
    assert late is not None
    assert late.held_seconds == 3600 - MOST_AN_HOUR
    assert len(late) == 3600 - MOST_AN_HOUR
    assert (len(late.began), late.left_out) == (MOST_WAITING, 3600 - MOST_AN_HOUR - MOST_WAITING)
    # One mail of an hour ago has made room for one, and no more.
    assert late.pause_seconds == 1


def test_storm_keeps_the_most_severe_alerts() -> None:
    rounds = MailBatching()
    rounds.note(began(*(alert(f"number {number}", Severity.TICKET) for number in range(MOST_WAITING * 2))), 0)
    rounds.note(began(alert("gone")), 1)
    due = rounds.take_due(1)
    assert due is not None
    assert due.began[0].summary == "gone"
    assert (len(due.began), due.left_out) == (MOST_WAITING, MOST_WAITING + 1)


def test_limit_resets_after_a_quiet_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_batching, "MOST_AN_HOUR", 2)
    rounds = MailBatching()
    for second in (0, 1, 2):
        rounds.note(began(alert(f"number {second}")), second)
        rounds.take_due(second)
    late = rounds.take_due(3600)
    assert late is not None
    assert late.held_seconds == 3598
    rounds.note(began(alert()), 9000)
    due = rounds.take_due(9000)
    assert due is not None
    assert (due.held_seconds, due.pause_seconds) == (None, None)
