"""Which mail is next, and when a failed mail is retried; without a clock or an event loop."""

from shared.mail.letters import Letter
from shared.mail.mailer import MAX_WAITING, PAUSES_SECONDS, MailQueue


def letter(number: int = 0) -> Letter:
    return Letter(f"anna{number}@example.com", "hello", "text")


def test_messages_are_sent_in_order() -> None:
    box = MailQueue()
    for number in range(3):
        assert box.put(letter(number), now=number)
    taken = [box.take_due(10), box.take_due(10), box.take_due(10), box.take_due(10)]
    assert [waiting.letter if waiting else None for waiting in taken] == [letter(0), letter(1), letter(2), None]
    assert box.seconds_to_wait(10) is None


def test_a_failed_message_lets_others_pass_and_is_retried_three_times() -> None:
    box, now, tries = MailQueue(), 0.0, 0
    box.put(letter(), now)
    while (waiting := box.take_due(now)) is not None:
        tries += 1
        if box.failed(waiting, now, for_good=False, why="away"):
            assert box.take_due(now) is None
            assert box.put(letter(1), now)
            other = box.take_due(now)
            assert other is not None
            assert other.letter == letter(1)
            pause = box.seconds_to_wait(now)
            assert pause == PAUSES_SECONDS[tries - 1]
            now += pause
    assert (tries, box.lost, len(box)) == (4, 1, 0)
    assert box.last_failure == "away"


def test_a_permanent_refusal_is_not_retried() -> None:
    box = MailQueue()
    box.put(letter(), 0)
    waiting = box.take_due(0)
    assert waiting is not None
    assert not box.failed(waiting, 0, for_good=True, why="550")
    assert (box.lost, len(box)) == (1, 0)


def test_the_queue_holds_a_hundred_and_counts_what_it_drops() -> None:
    box = MailQueue()
    assert [box.put(letter(n), 0) for n in range(MAX_WAITING + 5)].count(True) == MAX_WAITING == 100
    assert (len(box), box.lost) == (100, 5)


def test_a_success_ends_the_warning() -> None:
    box = MailQueue()
    box.put(letter(), 0)
    waiting = box.take_due(0)
    assert waiting is not None
    box.failed(waiting, 0, for_good=False, why="away")
    box.succeeded()
    assert (box.last_failure, box.sent) == ("", 1)
