from services.inference.engine.restarts import GiveUp, RestartIn, Restarts


def test_the_delay_doubles_and_the_fifth_crash_in_five_minutes_is_the_last() -> None:
    engine = Restarts()
    assert [engine.crashed(now) for now in (0, 10, 20, 30, 40)] == [
        RestartIn(1, 1),
        RestartIn(2, 2),
        RestartIn(4, 3),
        RestartIn(8, 4),
        GiveUp(5),
    ]


def test_old_crashes_are_forgotten() -> None:
    engine = Restarts()
    assert [engine.crashed(now) for now in (0, 100, 200, 301, 402, 503)] == [
        RestartIn(1, 1),
        RestartIn(2, 2),
        RestartIn(4, 3),
        RestartIn(4, 3),
        RestartIn(4, 3),
        RestartIn(4, 3),
    ]
