"""What is written of alerts: what changed, and that somebody was told only when somebody was."""

from dataclasses import replace

from services.metrics.alarms import changes
from services.metrics.alarms.desk import Alarm, Remembered
from services.metrics.alerts import rules

RULE = next(rule for rule in rules.ALL if rule.name == "ledger_drift")
LASTING = Remembered(Alarm(id="a", rule=RULE, labels=(), since=1000, value=5, firing=True), told=True, held_at=1015)
OVER = replace(LASTING, alarm=replace(LASTING.alarm, ended=1100.0), told=False, held_at=1100)


def test_another_value_of_an_alert_that_lasts_is_no_change() -> None:
    before = changes.keyed([LASTING])
    later = replace(LASTING, alarm=replace(LASTING.alarm, value=7), held_at=1030)
    assert not changes.find(before, changes.keyed([later]))
    assert changes.find(before, changes.keyed([replace(later, told=False)])).write == (replace(later, told=False),)


def test_what_is_new_is_written_and_what_is_gone_is_deleted() -> None:
    earlier = replace(LASTING, alarm=replace(LASTING.alarm, since=900))
    found = changes.find(changes.keyed([LASTING]), changes.keyed([earlier]))
    assert (found.write, found.delete) == ((earlier,), (("a", 1000),))


def test_while_news_wait_nobody_was_told_of_anything_more() -> None:
    assert changes.settled([LASTING], {}, is_all_taken=True)["a", 1000].told
    assert not changes.settled([LASTING], {}, is_all_taken=False)["a", 1000].told
    written = changes.keyed([LASTING])
    assert changes.settled([OVER], written, is_all_taken=False)["a", 1000].told, "its end waits"
    assert not changes.settled([OVER], written, is_all_taken=True)["a", 1000].told


def test_what_was_told_stays_told_when_it_turns_out_to_have_begun_before() -> None:
    earlier = replace(LASTING, alarm=replace(LASTING.alarm, since=900))
    assert changes.settled([earlier], changes.keyed([LASTING]), is_all_taken=False)["a", 900].told


def test_an_alert_that_comes_back_while_news_wait_makes_no_old_end_untold() -> None:
    again = replace(LASTING, alarm=replace(LASTING.alarm, since=2000))
    kept = changes.settled([again, OVER], changes.keyed([OVER, again]), is_all_taken=False)
    assert [one.told for one in kept.values()] == [True, False]
