from math import inf
from uuid import UUID

import msgspec
import pytest

from services.gateway.callers import MAX_ENTRIES, CallerCache
from shared.api.auth import Change
from shared.types import UserId
from tests.services.gateway.fakes import OWNER, USER

OTHER = UserId(UUID(int=9))


def remembered(*, watched: bool = False) -> CallerCache:
    cache = CallerCache()
    if watched:
        cache.watch_began()
        cache.apply(Change(1, OTHER))
    cache.remember(b"k", OWNER, now=100, ends_at=inf, changes_before=cache.changes)
    return cache


@pytest.mark.parametrize(
    ("watched", "later", "is_there"),
    [
        pytest.param(True, 59.9, True, id="60 s while auth reports changes"),
        pytest.param(True, 60, False, id="at most 60 s"),
        pytest.param(False, 4.9, True, id="5 s without reports"),
        pytest.param(False, 5, False, id="at most 5 s without reports"),
    ],
)
def test_a_cached_answer_expires(watched: bool, later: float, is_there: bool) -> None:
    assert (remembered(watched=watched).find(b"k", 100 + later) is not None) is is_there


def test_answers_stay_usable_for_five_minutes_if_auth_is_unreachable() -> None:
    cache = remembered()
    assert cache.find(b"k", 399, is_auth_away=True) is OWNER
    assert cache.find(b"k", 400, is_auth_away=True) is None


def test_losing_the_change_stream_shortens_the_lifetime_of_cached_answers() -> None:
    cache = remembered(watched=True)
    cache.watch_ended()
    assert cache.find(b"k", 106) is None


def test_an_access_token_is_never_cached_past_its_expiry() -> None:
    cache = CallerCache()
    cache.remember(b"t", OWNER, now=100, ends_at=103, changes_before=0)
    assert cache.find(b"t", 102) is OWNER
    assert cache.find(b"t", 103) is None
    assert cache.find(b"t", 103, is_auth_away=True) is None


@pytest.mark.parametrize(("user", "is_there"), [(USER, False), (OTHER, True), (None, False)])
def test_a_change_evicts_its_user_or_everyone(user: UserId | None, is_there: bool) -> None:
    cache = remembered(watched=True)
    cache.apply(Change(2, user))
    assert (cache.find(b"k", 101) is not None) is is_there
    assert cache.sequence == 2


def test_an_answer_requested_before_a_change_is_not_cached_after_it() -> None:
    cache = CallerCache()
    changes_before = cache.changes
    cache.apply(Change(1, USER))
    cache.remember(b"k", OWNER, now=100, ends_at=inf, changes_before=changes_before)
    assert cache.find(b"k", 100) is None


def test_the_first_watch_evicts_entries_from_before_it() -> None:
    cache = remembered()
    cache.watch_began()
    assert cache.find(b"k", 101) is None


def test_the_cache_is_bounded_and_evicts_the_least_recently_used() -> None:
    cache = CallerCache()
    for number in range(MAX_ENTRIES):
        cache.remember(b"%d" % number, OWNER, now=100, ends_at=inf, changes_before=0)
    assert cache.find(b"0", 100) is OWNER
    cache.remember(b"new", OWNER, now=100, ends_at=inf, changes_before=0)
    assert cache.find(b"0", 100) is OWNER
    assert cache.find(b"1", 100) is None


def test_a_key_that_names_people_and_its_strangers_are_asked_about_every_five_seconds() -> None:
    """Nobody announces who registers or verifies an address."""
    cache = remembered(watched=True)
    naming = msgspec.structs.replace(OWNER, scopes=("users:name",))
    cache.remember(b"k", naming, now=100, ends_at=inf, changes_before=cache.changes)
    assert cache.find(b"k", 104.9) is naming
    assert cache.find(b"k", 105) is None
    assert cache.find(b"k", 399, is_auth_away=True) is naming


@pytest.mark.parametrize(("user", "is_there"), [(USER, False), (OTHER, False), (UserId(UUID(int=8)), True)])
def test_a_named_person_is_forgotten_with_the_keys_owner(user: UserId, is_there: bool) -> None:
    cache = CallerCache()
    person = msgspec.structs.replace(OWNER, named_by=OTHER)
    cache.remember(b"p", person, now=100, ends_at=inf, changes_before=0)
    cache.apply(Change(2, user))
    assert (cache.find(b"p", 101) is not None) is is_there
