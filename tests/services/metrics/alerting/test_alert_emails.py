"""When an email is due and what it contains, whatever the labels contain; without a clock, an event loop or a mail server."""

import dataclasses
import re
import shlex
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import default

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.admin import alerts
from services.metrics.alerting import alert_emails
from services.metrics.alerting.alert_emails import GATHER_SECONDS, MOST_AN_HOUR, MOST_WAITING, MailBatch, MailBatching
from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice
from services.metrics.alerting.rules.alert_rule import Severity
from services.metrics.alerting.rules.evaluation import labels
from shared.mail import letters
from shared.mail.letters import Letter, MailSender
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
    # Only one mail is an hour old by now, so it has made room for only one.
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
    monkeypatch.setattr(alert_emails, "MOST_AN_HOUR", 2)
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


NOW = datetime(2026, 11, 21, 12, 3, tzinfo=UTC)
PAGES = "https://ai.example.org/"
SLOW = alert("{model} is slow", Severity.WARNING, since=NOON - 3600, model="llama3")
OVER = alert("disk of box is full", Severity.TICKET, since=NOON - 7200, ended=NOON - 60)


def mail(*began: ActiveAlert, over: tuple[ActiveAlert, ...] = (), **more: float) -> alert_emails.MailText:
    left_out = int(more.pop("left_out", 0))
    return alert_emails.written(MailBatch(began=began, ended=over, left_out=left_out, **more), PAGES, NOW)


@pytest.mark.parametrize(
    ("began", "over", "subject"),
    [
        ((alert(),), (), "aimesh: No worker is up"),
        ((alert(), SLOW), (), "aimesh: 2 alerts firing, including: No worker is up"),
        ((), (OVER,), "aimesh: Resolved: disk of box is full"),
        ((), (OVER, OVER, OVER), "aimesh: 3 alerts resolved, including: disk of box is full"),
        ((SLOW,), (OVER,), "aimesh: 1 alert firing, including: llama3 is slow; 1 resolved"),
    ],
)
def test_subject_has_the_count_and_the_worst_alert(began: tuple[ActiveAlert, ...], over: tuple[ActiveAlert, ...], subject: str) -> None:
    assert mail(*began, over=over).subject == subject


def test_text_says_what_since_when_and_what_to_do() -> None:
    text = mail(SLOW, over=(OVER,)).text
    assert "https://ai.example.org/admin/alerts\n" in text
    assert "As of 21 November 2026, 12:03 UTC." in text
    assert "\nllama3 is slow\n  warning, since 21 November 2026, 11:00 UTC\n  Nobody gets an answer until one is back.\n" in text
    assert "  labels: model=llama3\n" in text
    assert "  runbook: docs/runbooks/no_worker.md\n" in text
    assert f"  acknowledge: {shlex.join(['aicli', 'alerts', 'ack', SLOW.id])}\n" in text
    assert "  silence it for 2 hours: aicli alerts silence no_worker --for 2h --label model=llama3\n" in text
    assert "1 alert resolved:\n\n- disk of box is full (ticket, 21 November 2026, 10:00 UTC until 21 November 2026, 11:59 UTC)\n" in text


def test_without_a_public_url_the_text_names_the_command() -> None:
    text = alert_emails.written(MailBatch(began=(SLOW,), ended=()), "", NOW).text
    assert "`aicli alerts list`" in text
    assert "/admin" not in text


def test_only_ten_of_a_hundred_alerts_are_described_in_full() -> None:
    text = mail(*(alert(f"number {number}") for number in range(100)), left_out=7).text
    assert "100 alerts firing:" in text
    assert text.count("runbook:") == alert_emails.MOST_IN_FULL
    assert text.count("\n- number") == alert_emails.MOST_NAMED
    assert f"- and {100 - alert_emails.MOST_IN_FULL - alert_emails.MOST_NAMED} more\n" in text
    assert "7 more with lower severity: https://ai.example.org/admin/alerts" in text


def test_text_says_how_many_alerts_were_held_back() -> None:
    text = mail(SLOW, over=(OVER,), left_out=5, held_seconds=1500).text
    assert "7 alerts were held back for 25 minutes, because 20 emails were sent within an hour." in text
    text = mail(SLOW, pause_seconds=2400).text
    assert "last of 20 emails in this hour" in text
    assert "40 minutes" in text
    assert "check https://ai.example.org/admin/alerts" in text


@pytest.mark.parametrize(
    "hostile",
    [
        "a\r\nBcc: eve@example.com",
        "a\n\n.\nQUIT",
        "see https://evil.example/login now",
        "\u2028x\u2029y",
        "\0\x1b[31m",
        "x" * 5000,
        "$(reboot)",
    ],
)
def test_label_cannot_add_a_line_header_link_or_command(hostile: str) -> None:
    written = mail(alert("{model} is slow", model=hostile), SLOW, over=(alert("{model} was slow", ended=NOON, model=hostile),))
    letter = Letter("ops@example.org", written.subject, written.text)
    read = BytesParser(policy=default).parsebytes(letters.written(letter, MailSender("aimesh", "noreply@example.org"), NOW, "abc"))
    assert set(read.keys()) <= {
        "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
    }  # fmt: skip
    assert (read["To"], read["Subject"]) == ("ops@example.org", written.subject)
    lines = read.get_content().splitlines()
    assert not [line for line in lines if line.startswith(("Bcc", ".", "QUIT"))]
    assert "://evil" not in written.text
    assert max(map(len, lines)) < 700
    commands = [line.partition(": ")[2] for line in lines if line.startswith("  silence ")]
    assert commands[1] == "aicli alerts silence no_worker --for 2h --label model=llama3"
    assert [words[:5] for words in map(shlex.split, commands)] == [["aicli", "alerts", "silence", "no_worker", "--for"]] * 2
    assert not re.search(r"[$;|&<>`\s]", commands[0].partition(" --label ")[2])


def understood(alert: ActiveAlert) -> tuple[str, int, dict[str, str]]:
    """Parse the command in the mail as `aicli` does: the alert's name, the duration in seconds, and the labels."""
    words = shlex.split(alert_emails.silencing(alert))
    assert words[:3] == ["aicli", "alerts", "silence"]
    with alerts.silence.make_context("silence", words[3:]) as context:
        return context.params["name"], context.params["seconds"], context.params["labels"]


@pytest.mark.parametrize("where", [{}, {"model": "llama3"}, {"model": "llama3", "service": "gateway"}, {"model": "llama3:8b, b=c%20"}])
def test_aicli_parses_the_suggested_command(where: dict[str, str]) -> None:
    assert understood(alert(**where)) == ("no_worker", 7200, where)


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,10}", fullmatch=True), st.text(min_size=1, max_size=15), max_size=3))
def test_suggested_silence_only_covers_that_alert(where: dict[str, str]) -> None:
    one = dataclasses.replace(alert(), labels=labels(**where))
    assert alert_emails.is_typed(one)
    assert understood(one) == ("no_worker", 7200, where)
    assert alert_emails.silencing(one).isascii()
    assert alert_emails.silencing(one).isprintable()


def test_broader_silence_says_so() -> None:
    """The label is too long for a silence."""
    text = mail(alert(model="x" * 201), alert("another", model="x" * 200)).text
    assert "  silence all alerts of this name for 2 hours: aicli alerts silence no_worker --for 2h\n" in text
    assert f"  silence it for 2 hours: aicli alerts silence no_worker --for 2h --label model={'x' * 200}\n" in text
