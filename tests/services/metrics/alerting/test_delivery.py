"""This leader or the next one sends what a channel still has to send, and only once."""

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice, StoredAlertState
from services.metrics.alerting.delivery import Delivery
from shared.api.gateway import Check
from tests.services.metrics.alerting.sample_alerts import NOON, alert


class FakeChannel:
    """A channel that sends immediately, or when the test says so."""

    def __init__(self, name: str, *, takes: bool = True) -> None:
        self.name = name
        self.takes = takes
        self.got: list[AlertNotice] = []

    def notify(self, notice: AlertNotice) -> None:
        self.got.append(notice)

    async def run(self) -> None:
        return

    @property
    def waiting(self) -> int:
        return 0 if self.takes else len(self.got)

    def check(self) -> Check:
        return Check(self.name, ok=True)


def remembered(*alerts: ActiveAlert) -> list[StoredAlertState]:
    return [StoredAlertState(one, notified=one.ended is None, held_at=NOON) for one in alerts]


def test_each_channel_is_notified_once_and_its_debt_is_cleared() -> None:
    chat, mail = FakeChannel("chat"), FakeChannel("mail", takes=False)
    delivery = Delivery([chat, mail])
    began, over = alert(), alert("over", ended=NOON + 60)
    delivery.note([began, over])
    for _ in range(3):
        delivery.hand_over()
    assert (chat.got, mail.got) == ([AlertNotice((began,), (over,))], [AlertNotice((began,), (over,))])
    assert delivery.has_taken
    delivery.settle()
    assert not delivery.has_taken
    assert [(one.owed, one.notified) for one in delivery.with_owed(remembered(began, over))] == [(("mail",), True)] * 2
    mail.takes = True
    delivery.settle()
    assert [(one.owed, one.notified) for one in delivery.with_owed(remembered(began, over))] == [((), True), ((), False)]


def test_next_leader_sends_what_a_channel_did_not_deliver() -> None:
    before = Delivery([FakeChannel("chat"), FakeChannel("mail", takes=False), FakeChannel("gone", takes=False)])
    before.note([alert()])
    before.hand_over()
    before.settle()
    chat, mail = FakeChannel("chat"), FakeChannel("mail")
    delivery = Delivery([chat, mail])
    delivery.resume(before.with_owed(remembered(alert())))
    delivery.hand_over()
    assert (chat.got, mail.got) == ([], [AlertNotice((alert(),))])


def test_alert_that_recurs_while_a_channel_is_down_is_sent_again() -> None:
    chat = FakeChannel("chat", takes=False)
    delivery = Delivery([chat])
    for since in (NOON, NOON + 300):
        delivery.note([alert(since=since)])
        delivery.hand_over()
    assert [one.since for notice in chat.got for one in notice.began] == [NOON, NOON + 300]
