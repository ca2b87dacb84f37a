from stack.recovery.layout import LogPart
from stack.recovery.restoring import restored_log


def part(first: int, last: int) -> LogPart:
    return LogPart("auth", first, last)


def test_lines_that_are_in_two_objects_are_taken_once() -> None:
    parts = [part(4, 9), part(1, 3), part(3, 3), part(1, 2), part(8, 12)]
    assert restored_log.choose(parts) == ([(part(1, 3), 0), (part(4, 9), 0), (part(8, 12), 2)], [])


def test_nothing_behind_a_gap_is_taken() -> None:
    assert restored_log.choose([part(1, 3), part(5, 6), part(7, 8)]) == ([(part(1, 3), 0)], [part(5, 6), part(7, 8)])
    assert restored_log.choose([part(2, 3)]) == ([], [part(2, 3)])
