"""Limits on concurrent work, in total and per owner."""

import pytest

from shared import errors
from shared.timing.concurrency_limit import ConcurrencyLimit

REFUSAL = errors.Overloaded("full")


def test_limits_apply_in_total_and_per_owner() -> None:
    limit = ConcurrencyLimit(3, 2)
    with limit.one_more("a", REFUSAL), limit.one_more("a", REFUSAL):
        assert (limit.has_share("a"), limit.has_share("b"), limit.is_full) == (False, True, False)
        with pytest.raises(errors.Overloaded, match="full"), limit.one_more("a", REFUSAL):
            pytest.fail("above the limit of one owner")
        with limit.one_more("b", REFUSAL):
            assert (limit.has_share("c"), limit.is_full, len(limit)) == (True, True, 3)
            with pytest.raises(errors.Overloaded, match="full"), limit.one_more("c", REFUSAL):
                pytest.fail("above the limit in total")
    with limit.one_more("a", REFUSAL):
        assert len(limit) == 1
    assert (len(limit), limit._running) == (0, {})


def test_an_unnamed_owner_only_counts_in_total() -> None:
    limit = ConcurrencyLimit(3, 1)
    for _ in range(3):
        assert limit.has_share(None)
        limit.enter(None)
    assert limit.is_full


def test_without_its_own_limit_an_owner_may_use_all() -> None:
    limit = ConcurrencyLimit(2)
    limit.enter("a")
    assert limit.has_share("a")
    limit.enter("a")
    assert limit.is_full


def test_a_failed_block_is_no_longer_counted() -> None:
    limit = ConcurrencyLimit(1)
    with pytest.raises(ZeroDivisionError), limit.one_more("a", REFUSAL):
        raise ZeroDivisionError
    assert not limit.is_full
