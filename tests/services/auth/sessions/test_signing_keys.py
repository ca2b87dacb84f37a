"""When a key signs, is replaced and is dropped: a table of cases, and simulated months."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.auth.sessions import signing_keys, tokens
from services.auth.sessions.signing_keys import KEPT, PUBLISHED, KnownKey, RotationPlan
from tests import tiers

NOW = datetime(2026, 2, 1, tzinfo=UTC)
LIFETIME = timedelta(days=90)
MINUTE = timedelta(minutes=1)


def key(kid: str, signs_from: datetime, *, retired_at: datetime | None = None, epoch: int = 0) -> KnownKey:
    return KnownKey(kid=kid, epoch=epoch, made_at=signs_from, signs_from=signs_from, retired_at=retired_at)


def signer(keys: Sequence[KnownKey], now: datetime) -> str | None:
    found = signing_keys.signer_of(keys, now)
    return None if found is None else found.kid


ONE = key("one", NOW)
TWO = key("two", NOW + LIFETIME)
RETIRED = replace(ONE, retired_at=TWO.signs_from)


@pytest.mark.parametrize(
    ("keys", "now", "expected"),
    [
        pytest.param([], NOW, RotationPlan(make=NOW, epoch=0), id="the first one signs at once"),
        pytest.param([ONE], NOW + MINUTE, RotationPlan(make=None, epoch=0), id="then there is nothing to do"),
        pytest.param([ONE], NOW + LIFETIME - PUBLISHED - MINUTE, RotationPlan(make=None, epoch=0), id="for a long time"),
        pytest.param(
            [ONE],
            NOW + LIFETIME - PUBLISHED,
            RotationPlan(make=NOW + LIFETIME, epoch=0, retire=("one",)),
            id="the next one is published before it signs",
        ),
        pytest.param(
            [ONE],
            NOW + 2 * LIFETIME,
            RotationPlan(make=NOW + 2 * LIFETIME + PUBLISHED, epoch=0, retire=("one",)),
            id="also where its time has long come",
        ),
        pytest.param([RETIRED, TWO], NOW + LIFETIME - MINUTE, RotationPlan(make=None, epoch=0), id="one that follows is enough"),
        pytest.param([RETIRED, TWO], NOW + LIFETIME + KEPT - MINUTE, RotationPlan(make=None, epoch=0), id="the last tokens are still read"),
        pytest.param([RETIRED, TWO], NOW + LIFETIME + KEPT, RotationPlan(make=None, epoch=0, drop=("one",)), id="then it is forgotten"),
        pytest.param([ONE], NOW - MINUTE, RotationPlan(make=None, epoch=0), id="a replica whose clock is behind makes none"),
        pytest.param([RETIRED], NOW + LIFETIME, RotationPlan(make=NOW + LIFETIME, epoch=0), id="one whose successor is gone"),
        pytest.param(
            [RETIRED], NOW + 2 * LIFETIME, RotationPlan(make=NOW + 2 * LIFETIME, epoch=0, drop=("one",)), id="one that is long over, alone"
        ),
    ],
)
def test_what_is_due_at_which_time(keys: list[KnownKey], now: datetime, expected: RotationPlan) -> None:
    assert signing_keys.plan(keys, now, LIFETIME) == expected


@pytest.mark.parametrize(
    ("keys", "now", "expected"),
    [
        pytest.param([], NOW, None, id="none"),
        pytest.param([RETIRED, TWO], NOW + LIFETIME - MINUTE, "one", id="the old one until the last moment"),
        pytest.param([RETIRED, TWO], NOW + LIFETIME, "two", id="and then the next"),
        pytest.param([ONE], NOW - MINUTE, "one", id="the only one, although its time has not come by this clock"),
        pytest.param([key("b", NOW), key("a", NOW)], NOW, "b", id="of two with one time, each replica chooses the same"),
        pytest.param([ONE, key("new", NOW - LIFETIME, epoch=1)], NOW, "new", id="one of a later epoch, whatever the others say"),
    ],
)
def test_which_key_signs(keys: list[KnownKey], now: datetime, expected: str | None) -> None:
    assert signer(keys, now) == expected


def test_the_times_are_as_documented() -> None:
    """SECURITY.md §5: published for 15 minutes; kept for a token's life, the leeway and the time that others cache the list."""
    assert timedelta(minutes=15) <= PUBLISHED
    assert timedelta(seconds=tokens.LIFETIME_SECONDS + tokens.LEEWAY_SECONDS + 300) <= KEPT == timedelta(minutes=20)


def test_an_administrators_rotation_adds_exactly_one_key() -> None:
    plan = signing_keys.plan_rotation([ONE], NOW + MINUTE)
    assert plan == RotationPlan(make=NOW + MINUTE + PUBLISHED, epoch=0, retire=("one",))
    assert signing_keys.plan_rotation([RETIRED, TWO], NOW + MINUTE).is_empty
    assert signing_keys.plan_rotation([], NOW) == RotationPlan(make=NOW, epoch=0)


def test_an_emergency_drops_all_keys_and_changes_the_issuer() -> None:
    plan = signing_keys.plan_emergency([RETIRED, replace(TWO, epoch=3)], NOW)
    assert plan == RotationPlan(make=NOW, epoch=4, drop=("one", "two"))


def done(keys: list[KnownKey], plan: RotationPlan, now: datetime) -> list[KnownKey]:
    kept = [replace(one, retired_at=plan.make) if one.kid in plan.retire else one for one in keys if one.kid not in plan.drop]
    if plan.make is None:
        return kept
    return [*kept, KnownKey(kid=f"{now:%m%d%H%M}", epoch=plan.epoch, made_at=now, signs_from=plan.make)]


def test_over_simulated_months_no_token_lacks_its_key() -> None:
    """The keys are checked every 7 minutes, by a service that sometimes sleeps for hours."""
    keys: list[KnownKey] = []
    signed: dict[str, datetime] = {}
    now, looks, months = NOW, 0, tiers.volume(12)
    while now < NOW + timedelta(days=30 * months + 5):
        keys = done(keys, signing_keys.plan(keys, now, timedelta(days=30)), now)
        # Tokens live up to 10 minutes, plus a minute of leeway.
        recent = {kid for kid, at in signed.items() if now - at < timedelta(minutes=11)}
        assert recent <= {one.kid for one in keys if not one.is_over(now)}
        kid = signer(keys, now)
        assert kid is not None
        if kid not in signed and signed:
            (made,) = [one.made_at for one in keys if one.kid == kid]
            assert now - made >= PUBLISHED
        signed[kid] = now
        assert len(keys) <= 2
        looks += 1
        now += timedelta(minutes=7) if looks % 1000 else timedelta(hours=10)
    assert len(signed) == months + 1
