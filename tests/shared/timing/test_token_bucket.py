from shared.timing.token_bucket import TokenBucket


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    bucket = TokenBucket(2, at_once=5)
    assert [bucket.spend(100) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [bucket.spend(100.5), bucket.spend(100.5), bucket.spend(101.25)] == [True, False, True]


def test_a_pause_allows_no_more_than_a_burst() -> None:
    bucket = TokenBucket(2, at_once=5)
    assert sum(bucket.spend(100) for _ in range(9)) == 5
    assert sum(bucket.spend(10_000) for _ in range(9)) == 5
