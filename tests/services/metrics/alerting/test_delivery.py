"""What is owed to a channel of telling is told once: by this leader, or by the next where this one ended before."""

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice, StoredAlertState
from services.metrics.alerting.delivery import Delivery
from shared.api.gateway import Check
from tests.services.metrics.alerting.sample_alerts import NOON, alert


class Told:
    """A channel that takes what it is told at once, or when the test says so."""

    def __init__(self, name: str, *, takes: bool = True) -> None:
        self.name = name
        self.takes = takes
        self.got: list[AlertNotice] = []

    def tell(self, notice: AlertNotice) -> None:
        self.got.append(notice)

    async def run(self) -> None:
        return

    @property
    def waiting(self) -> int:
        return 0 if self.takes else len(self.got)

    def check(self) -> Check:
        return Check(self.name, ok=True)


def remembered(*alerts: ActiveAlert) -> list[StoredAlertState]:
    return [StoredAlertState(one, told=one.ended is None, held_at=NOON) for one in alerts]


def test_each_way_is_told_once_and_what_it_has_taken_is_owed_no_more() -> None:
    chat, mail = Told("chat"), Told("mail", takes=False)
    delivery = Delivery([chat, mail])
    began, over = alert(), alert("over", ended=NOON + 60)
    delivery.note([began, over])
    for _ in range(3):
        delivery.hand_over()
    assert (chat.got, mail.got) == ([AlertNotice((began,), (over,))], [AlertNotice((began,), (over,))])
    assert delivery.has_taken
    delivery.settle()
    assert not delivery.has_taken
    assert [(one.owed, one.told) for one in delivery.with_owed(remembered(began, over))] == [(("mail",), True)] * 2
    mail.takes = True
    delivery.settle()
    assert [(one.owed, one.told) for one in delivery.with_owed(remembered(began, over))] == [((), True), ((), False)]


def test_the_next_leader_hands_over_what_was_owed_to_the_ways_that_did_not_take_it() -> None:
    before = Delivery([Told("chat"), Told("mail", takes=False), Told("gone", takes=False)])
    before.note([alert()])
    before.hand_over()
    before.settle()
    chat, mail = Told("chat"), Told("mail")
    delivery = Delivery([chat, mail])
    delivery.resume(before.with_owed(remembered(alert())))
    delivery.hand_over()
    assert (chat.got, mail.got) == ([], [AlertNotice((alert(),))])


def test_an_alert_that_comes_again_while_a_way_does_not_answer_is_told_again() -> None:
    chat = Told("chat", takes=False)
    delivery = Delivery([chat])
    for since in (NOON, NOON + 300):
        delivery.note([alert(since=since)])
        delivery.hand_over()
    assert [one.since for notice in chat.got for one in notice.began] == [NOON, NOON + 300]
