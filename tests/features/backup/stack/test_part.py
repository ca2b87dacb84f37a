"""What backups add to a stack: the agent, what auth is told, and what a start waits for."""

from pathlib import Path

import pytest

from features.backup.settings import BackupSettings
from features.backup.stack import part, sealing
from features.backup.stack.part import PART
from shared import config
from shared.stores import file_lock
from stack import initialization, settings, stack_plan
from stack import stack_home as homes
from stack.stack_home import StackHome
from stack.stack_plan import StackPlan


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    return homes.locate({"AIMESH_HOME": str(tmp_path / "h")})


def _plan(home: StackHome, **overrides: str) -> StackPlan:
    made = initialization.ensure(home, overrides, home.root.parent)
    return stack_plan.make(home, made.settings, made.recorded, {"PATH": "/bin"})


def _environments(planned: StackPlan) -> dict[str, dict[str, str]]:
    return {program.name: program.environment for program in planned.programs}


_RECIPIENT = sealing.recipient_of(sealing.new_identity())


def test_backups_have_an_agent_which_alone_gets_their_settings(home: StackHome) -> None:
    assert "backup" not in _environments(_plan(home))
    planned = _plan(home, BACKUP_TO="/srv/backup", BACKUP_RECIPIENTS=_RECIPIENT, BACKUP_WAL_MOST="12GB")
    environments = _environments(planned)
    agent = environments["backup"]
    loaded = config.load(BackupSettings, agent)
    assert (loaded.backup_to, loaded.backup_recipients, loaded.streams_database) == ("/srv/backup", (_RECIPIENT,), True)
    assert loaded.backup_database_url == (home.secrets / "database_url_backup").read_text().strip()
    assert {name for name in agent if name.endswith("_FILE")} == {"NODE_KEY_FILE", "BACKUP_DATABASE_URL_FILE"}
    assert (agent["NODE_KEY_FILE"], agent["AIMESH_HOME"]) == (str(home.key("backup")), str(home.root))
    assert [name for name, found in environments.items() if "BACKUP_TO" in found] == ["backup"]
    (server,) = (program for program in planned.programs if program.name == "postgres")
    assert "max_slot_wal_keep_size=12GB" in server.command


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"DATABASE_URL": "postgresql://u:p@h/d"}, None),
        ({"DATABASE_URL": "postgresql://u:p@h/d", "BACKUP_DATABASE_URL": "postgresql://b:p@h/d"}, "postgresql://b:p@h/d"),
        ({"BACKUP_DATABASE": "managed"}, None),
    ],
)
def test_which_database_the_agent_copies(home: StackHome, given: dict[str, str], url: str | None) -> None:
    agent = _environments(_plan(home, BACKUP_TO="/srv/backup", BACKUP_RECIPIENTS=_RECIPIENT, **given))["backup"]
    assert config.load(BackupSettings, agent).backup_database_url == url


@pytest.mark.parametrize(
    ("overrides", "recorded", "state"),
    [
        ({}, {}, "off"),
        ({"host": "localhost", "dht_host": "::1"}, {}, "off"),
        ({"host": "0.0.0.0"}, {}, "missing"),
        ({"dht_host": "203.0.113.5"}, {}, "missing"),
        ({}, {"BACKUP_TO": "/srv/backup"}, "on"),
        ({"host": "0.0.0.0"}, {"BACKUP_TO_FILE": "/secret"}, "on"),
    ],
)
def test_backups_are_missing_when_other_machines_reach_the_stack(overrides: dict[str, str], recorded: dict[str, str], state: str) -> None:
    assert part.state_of(settings.StackSettings(**overrides), recorded) == state


def test_auth_is_told_about_backups_and_the_user_may_say_otherwise(home: StackHome) -> None:
    assert _environments(_plan(home))["auth"]["BACKUP_STATE"] == "off"
    assert _environments(_plan(home, BIND_HOST="0.0.0.0", ALLOW_PLAIN_HTTP="true"))["auth"]["BACKUP_STATE"] == "missing"
    chosen = _plan(home, BIND_HOST="0.0.0.0", ALLOW_PLAIN_HTTP="true", BACKUP_STATE="off")
    assert _environments(chosen)["auth"]["BACKUP_STATE"] == "off"


async def test_a_start_waits_for_a_base_backup(home: StackHome) -> None:
    homes.ensure_folders(home)
    assert not PART.is_preparing(home)
    async with file_lock.hold(home.base_backup):
        assert PART.is_preparing(home)
    assert not PART.is_preparing(home)
