"""When a stack asks its features, here one of the test's own."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from shared import errors
from stack import features, initialization, schema_migrations, secret_files, stack_plan, supervisor, up_down
from stack import stack_home as homes
from stack.features import StackPart, StackSite
from stack.servers import postgres
from stack.servers.postgres import Postgres
from stack.servers.program import Program
from stack.settings import StackSettings
from stack.stack_home import StackHome
from stack.stack_plan import StackPlan

Upgrades = list[Sequence[Program]]


def _defaults(_site: StackSite, service: str) -> Mapping[str, str]:
    return {"LOG_LEVEL": "debug", "CLOCK": "on"} if service == "auth" else {}


def _programs(site: StackSite) -> Sequence[Program]:
    return (Program(name="clock", command=("date",), environment=dict(site.machine), stage=1),)


def _ensure_may_start(home: StackHome, _server: Postgres | None) -> None:
    if (home.run / "stopped_clock").exists():
        raise errors.BadSettings("the clock has stopped")


@pytest.fixture(autouse=True)
def upgrades(monkeypatch: pytest.MonkeyPatch) -> Upgrades:
    """A program that tells the time, and a home that may not start."""
    found: Upgrades = []

    async def before_migrations(_home: StackHome, _server: Postgres, programs: Sequence[Program]) -> None:
        found.append(programs)

    part = StackPart(
        defaults=_defaults,
        programs=_programs,
        database_options=lambda _settings: {"timezone": "UTC"},
        ensure_may_start=_ensure_may_start,
        before_migrations=before_migrations,
    )
    monkeypatch.setattr(features, "parts", lambda: [part])
    return found


def test_a_feature_adds_programs_options_of_the_database_and_defaults(home: StackHome) -> None:
    made = initialization.ensure(home, {"LOG_LEVEL": "info"}, home.root)
    planned = {program.name: program for program in stack_plan.make(home, made.settings, made.recorded, {"PATH": "/bin"}).programs}
    assert planned["clock"].environment == {"PATH": "/bin"}
    assert "timezone=UTC" in planned["postgres"].command
    auth = planned["auth"].environment
    assert (auth["CLOCK"], auth["LOG_LEVEL"]) == ("on", "info"), "what the user has chosen counts"


async def test_a_feature_may_prevent_a_start(home: StackHome) -> None:
    homes.ensure_folders(home)
    (home.run / "stopped_clock").touch()

    async def prepare(_settings: StackSettings) -> None: ...

    with pytest.raises(errors.BadSettings, match="the clock has stopped"):
        await up_down.up(home, {}, home.root, print, prepare)


@pytest.mark.parametrize("changes", [True, False])
async def test_features_prepare_an_upgrade_only_before_tables_change(
    home: StackHome, upgrades: Upgrades, monkeypatch: pytest.MonkeyPatch, *, changes: bool
) -> None:
    async def will_change_tables(_home: StackHome, _server: Postgres) -> bool:
        return changes

    monkeypatch.setattr(schema_migrations, "will_change_tables", will_change_tables)
    monkeypatch.setattr(postgres, "provision", lambda *_: None)
    homes.ensure_folders(home)
    secret_files.ensure(home)
    programs = (Program(name="clock", command=("date",), environment={}, stage=1),)
    async with asyncio.TaskGroup() as tasks:
        await supervisor.Supervisor(home, StackPlan(programs, None, None, "f"), tasks, log_days=90)._prepare(stack_plan.postgres_of(home))
    assert upgrades == [programs] * changes
