from shared.timing.transfer_speed import TransferSpeed


def test_a_speed_is_not_known_in_the_first_half_second() -> None:
    speed = TransferSpeed(10.0)
    assert speed.measure(10.0, 16 << 20) == 0.0
    assert speed.measure(10.001, 16 << 20) == 0.0
    assert speed.measure(10.5, 16 << 20) == 32 << 20


def test_what_was_there_before_does_not_count() -> None:
    speed = TransferSpeed(10.0, first_bytes=1000)
    assert speed.measure(12.0, 1500) == 250.0
    assert speed.measure(12.0, 500) == 0.0
