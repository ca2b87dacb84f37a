"""The state of notices over several looks: hold times, silences, resolved ones, and what is owed to whom."""

import msgspec
import pytest

from services.metrics.alerting import notices, rules
from services.metrics.alerting.notices import MAX_ENDED, MAX_OF_ONE, Notice, NoticeState, Silence
from services.metrics.alerting.thresholds import Readings
from services.metrics.history.samples import Labels

RULES = rules.load()
CHANNELS = ("chat", "mail")
DRIFT, QUEUE, DISK = "ai_platform_ledger_drift_micro", "ai_platform_queue_depth", "ai_platform_server_up"


def of_gateway(**labels: str) -> Labels:
    return tuple(sorted({"service": "gateway", **labels}.items()))


DRIFTING = Readings({DRIFT: {of_gateway(node="g"): 5.0}}, {})
LONG_QUEUE = Readings({QUEUE: {of_gateway(node="g", model="m"): 150.0}}, {})
WELL = Readings({}, {})


def look(state: NoticeState, readings: Readings, now: float, *silences: Silence) -> NoticeState:
    return notices.look(state, readings, silences, rules=RULES, channels=CHANNELS, now=now)


def test_notice_has_the_texts_of_its_rule_and_is_owed_to_every_channel() -> None:
    state = look(NoticeState(), LONG_QUEUE, 100)
    (pending,) = state.active
    assert (pending.changed_at, pending.owed, state.owed("chat")) == (None, (), [])
    for now in (130, 160):
        state = look(state, LONG_QUEUE, now)
    (firing,) = state.active
    assert (firing.severity, firing.summary, firing.value) == ("warning", "Over 100 requests are queued for m", 150)
    assert (firing.since, firing.changed_at, firing.owed) == (100, 160, CHANNELS)
    assert look(NoticeState(), LONG_QUEUE, 500).active[0].id == firing.id, "the same for every leader"
    assert look(state, LONG_QUEUE, 175).active == (firing,)


def test_resolved_notice_is_owed_only_if_it_was_told_and_stays_for_a_day() -> None:
    state = look(look(NoticeState(), DRIFTING, 100), WELL, 115)
    assert state.active == ()
    (ended,) = state.ended
    assert (ended.ended, ended.owed) == (115, CHANNELS)
    pending = look(look(NoticeState(), LONG_QUEUE, 100), WELL, 115)
    assert pending.ended == ()
    assert look(state, WELL, 115 + notices.ENDED_SECONDS).ended == ()


def test_what_was_sent_is_owed_no_more_and_only_what_was_sent() -> None:
    firing = look(NoticeState(), DRIFTING, 100)
    sent = firing.owed("chat")
    state = firing.settle("chat", sent)
    assert (state.owed("chat"), len(state.owed("mail"))) == ([], 1)
    # It was resolved while its start was being sent.
    resolved = look(firing, WELL, 115).settle("chat", sent)
    assert [one.ended for one in resolved.owed("chat")] == [115]


def test_silenced_notice_is_sent_when_the_silence_ends() -> None:
    silence = Silence("ledger_drift", (("node", "g"),), "ann", "", "1", 200)
    state = look(NoticeState(), DRIFTING, 100, silence)
    assert state.active[0].changed_at == 100
    assert state.owed("chat") == []
    assert look(state, WELL, 115, silence).ended[0].owed == (), "nobody was told that it began"
    assert len(look(state, DRIFTING, 200, silence).owed("chat")) == 1


@pytest.mark.parametrize(
    ("name", "labels", "covers"),
    [("", (), True), ("ledger_drift", (), True), ("disk_full", (), False), ("", (("node", "g"),), True), ("", (("node", "h"),), False)],
)
def test_silence_covers_name_and_labels(name: str, labels: Labels, covers: bool) -> None:
    (notice,) = look(NoticeState(), DRIFTING, 100).active
    assert Silence(name, labels, "", "", "1", 200).covers(notice, 150) is covers
    assert not Silence(name, labels, "", "", "1", 100).covers(notice, 150)


def test_what_needs_growth_stays_as_it_is_until_growth_is_known() -> None:
    ttft = "ai_platform_ttft_seconds_bucket"
    slow = {ttft: {(("le", "5.0"), ("model", "m")): 1.0, (("le", "7.5"), ("model", "m")): 9.0, (("le", "+Inf"), ("model", "m")): 9.0}}
    state = look(look(NoticeState(), Readings({}, slow), 0), Readings({}, slow), 300)
    assert [one.changed_at for one in state.active] == [300]
    assert look(state, Readings({}, {}), 315).active == state.active
    assert look(state, Readings({}, {ttft: {}}), 330).active == ()


def test_after_an_outage_only_firing_notices_continue() -> None:
    state = look(look(NoticeState(), DRIFTING, 100), Readings({**DRIFTING.gauges, **LONG_QUEUE.gauges}, {}), 115)
    assert len(state.continued(130).active) == 2
    assert [one.name for one in state.continued(600).active] == ["ledger_drift"]
    assert msgspec.json.decode(msgspec.json.encode(state), type=NoticeState) == state


def test_one_threshold_cannot_bury_the_others_and_series_without_a_rule_are_nothing() -> None:
    many = {of_gateway(node=f"g{number}"): 1.0 for number in range(MAX_OF_ONE + 20)}
    state = look(NoticeState(), Readings({DRIFT: many, DISK: {(("server", "unheard-of"),): 0.0}}, {}), 100)
    assert len(state.active) == MAX_OF_ONE
    ended = [Notice(str(n), "x", rules.Severity.PAGE, (), "", "", "", "", 0, ended=100) for n in range(MAX_ENDED)]
    assert len(look(NoticeState(100, state.active, tuple(ended)), WELL, 115).ended) == MAX_ENDED
