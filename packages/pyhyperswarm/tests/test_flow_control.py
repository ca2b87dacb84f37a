"""Credit windows: nothing is sent without credit, everything arrives in order, and no sequence of sizes deadlocks."""

from hypothesis import given
from hypothesis import strategies as st
from pyhyperswarm.flow_control import MAX_PART_BYTES, OVERHEAD, ReceiveWindow, SendWindow


def drain(window: SendWindow) -> list[tuple[bytes, bool]]:
    parts = []
    while (part := window.next_part()) is not None:
        parts.append(part)
    return parts


def test_a_message_costs_its_bytes_and_an_overhead() -> None:
    window = SendWindow(100)
    assert window.take(b"x" * 50)
    assert window.room == 100 - 50 - OVERHEAD


def test_an_empty_message_is_not_free() -> None:
    window = SendWindow(OVERHEAD)
    assert window.take(b"")
    assert not window.take(b"")


def test_a_short_message_does_not_overtake_a_waiting_one() -> None:
    window = SendWindow(200)
    window.wait(b"a" * 1000)
    assert not window.take(b"b")


def test_waiting_messages_make_the_window_negative_and_leave_with_credit() -> None:
    window = SendWindow(0)
    window.wait(b"a" * 1000)
    assert window.room < 0
    assert drain(window) == []
    window.grant(1000 + OVERHEAD)
    assert drain(window) == [(b"a" * 1000, True)]
    assert window.room == 0


def test_a_long_message_is_sent_in_parts_as_credit_arrives() -> None:
    window = SendWindow(500)
    window.wait(b"a" * 600)
    assert drain(window) == [(b"a" * (500 - OVERHEAD), False)]
    window.grant(1000)
    assert drain(window) == [(b"a" * (100 + OVERHEAD), True)]


def test_a_tiny_part_of_a_message_waits_for_more_credit() -> None:
    window = SendWindow(OVERHEAD + 5)
    window.wait(b"a" * 600)
    assert drain(window) == []


def test_an_unauthenticated_peer_gets_no_credit_until_it_is_known() -> None:
    window = ReceiveWindow(first=1000, window=10_000)
    assert [window.take(500), window.take(500)] == [0, 0]
    assert window.open() == 10_000 - 1000 + 1000
    assert window.open() == 0


def test_credit_is_granted_in_batches() -> None:
    window = ReceiveWindow(first=1000, window=10_000)
    window.open()
    assert [window.take(2000), window.take(499), window.take(1)] == [0, 0, 2500]


@given(
    st.lists(st.integers(0, 3 * MAX_PART_BYTES), max_size=12),
    st.integers(4 * OVERHEAD, 5000),
    st.integers(16 * OVERHEAD, 200_000),
)
def test_anything_sent_arrives_complete_in_order_and_within_the_window(sizes: list[int], first: int, whole: int) -> None:
    sender, receiver = SendWindow(first), ReceiveWindow(first, whole)
    messages = [bytes([index]) * size for index, size in enumerate(sizes)]
    allowance, arrived, parts = first, [], b""
    wire: list[tuple[bytes, bool]] = []
    for message in messages:
        if sender.take(message):
            wire.append((message, True))
        else:
            sender.wait(message)
    credit = receiver.open()
    while wire or credit or (fresh := drain(sender)):
        sender.grant(credit)
        allowance += credit
        wire += drain(sender) if credit else []
        wire += [] if wire or credit else fresh
        credit = 0
        for part, is_last in wire:
            allowance -= len(part) + OVERHEAD
            assert allowance >= 0
            assert len(part) <= MAX_PART_BYTES
            parts += part
            if is_last:
                arrived.append(parts)
                parts = b""
            credit += receiver.take(len(part) + OVERHEAD)
        wire = []
    assert arrived == messages
    assert sender.room >= whole - whole // 4 - max(0, first - whole)
