"""After an older copy replaces the database, revoked access does not work again."""

from pathlib import Path

import msgspec
import pytest

from services.auth.recovery import kinds
from services.auth.settings import AuthSettings
from services.gateway.recovery import kinds as gateway_kinds
from tests.servers import PostgresServer
from tests.services.auth.audit.test_reference import described
from tests.services.auth.recovery.restoring import RestorableAuth
from tests.services.auth.recovery.scenarios import SCENARIOS


@pytest.fixture
def stored(ca_settings: AuthSettings, postgres: PostgresServer, tmp_path: Path) -> RestorableAuth:
    return RestorableAuth(ca_settings, postgres, tmp_path)


async def test_what_was_taken_from_somebody_works_again_only_without_the_log(stored: RestorableAuth) -> None:
    cases = [scenario() for scenario in SCENARIOS]
    async with stored.running() as world:
        for case in cases:
            await case.prepare(world, stored)
    backup = await stored.copy_database()
    async with stored.running() as world:
        for case in cases:
            await case.restrict(world, stored)

    stored.settings = backup
    same_backup = await stored.copy_database()
    stored.settings = msgspec.structs.replace(backup, recovery_log_dir=None)
    async with stored.running() as world:
        assert [type(case) for case in cases if not await case.works(world, stored)] == []

    stored.settings = same_backup
    for _ in range(2):
        async with stored.running() as world:
            assert [type(case) for case in cases if await case.works(world, stored)] == []


def test_every_kind_is_covered_by_an_act() -> None:
    # No method changes the limits of a key, so key.tightened has no act.
    assert {kind for covered in kinds.RESTRICTING.values() for kind in covered} | {"key.tightened"} == set(kinds.KINDS)


def test_every_act_that_restricts_somebody_has_a_kind_or_a_reason_why_not() -> None:
    """A new action has to be put into one of the three tables."""
    decided = [*kinds.RESTRICTING, *gateway_kinds.RESTRICTING, *kinds.WITHOUT_KIND, *kinds.HARMLESS]
    assert sorted(decided) == sorted(described())
