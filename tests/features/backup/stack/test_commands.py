"""`aicli stack backup`, `backups` and `backup keygen`, without an agent but with the agent's log shipping."""

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from features.backup.stack import sealing
from features.backup.stack.agent import wal_shipping
from tests import stacks
from tests.features.backup.stack import copied_database
from tests.features.backup.stack.copied_database import CopiedDatabase
from tests.servers import PostgresServer


def aicli(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main.aicli, ["stack", *arguments], env={"AIMESH_HOME": str(home)})


def test_keygen_writes_an_identity_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "usb.age"
    done = aicli(tmp_path / "h", "backup", "keygen", str(file))
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (identity,) = sealing.read_identities(file)
    assert done.stdout == f"{sealing.recipient_of(identity)}\n"
    assert identity not in done.output
    assert json.loads(aicli(tmp_path / "h", "backup", "keygen", str(tmp_path / "two.age"), "--json").stdout)["recipient"].startswith("age1")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("h/usb.age", "would be lost with it"),
        ("there.age", "exists, and may be the only key of your backups"),
        ("no/x.age", "No such file"),
    ],
)
def test_keygen_refuses(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "there.age").write_text("mine")
    done = aicli(tmp_path / "h", "backup", "keygen", str(tmp_path / place))
    assert done.exit_code == 2
    assert words in done.stderr
    assert (tmp_path / "there.age").read_text() == "mine"


@pytest.mark.parametrize("command", ["backup", "backups"])
def test_without_backups_they_say_how_to_enable_them(tmp_path: Path, command: str) -> None:
    assert aicli(tmp_path / "h", "init").exit_code == 0
    done = aicli(tmp_path / "h", command)
    assert done.exit_code == 2
    assert "backups are off – BACKUP_TO=… BACKUP_RECIPIENTS=… make up" in done.stderr


def test_store_in_the_home_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "h"
    recipient = sealing.recipient_of(sealing.new_identity())
    variables = {"AIMESH_HOME": str(home), "BACKUP_TO": str(home / "backups"), "BACKUP_RECIPIENTS": recipient}
    assert CliRunner().invoke(main.aicli, ["stack", "init"], env=variables).exit_code == 0
    done = aicli(home, "backups")
    assert (done.exit_code, "would be lost with it" in done.stderr) == (2, True)


def test_store_of_another_stack_is_refused(tmp_path: Path) -> None:
    recipient = sealing.recipient_of(sealing.new_identity())
    for name, status in (("one", 0), ("two", 2)):
        variables = {"AIMESH_HOME": str(tmp_path / name), "BACKUP_TO": str(tmp_path / "store"), "BACKUP_RECIPIENTS": recipient}
        assert CliRunner().invoke(main.aicli, ["stack", "init"], env=variables).exit_code == 0
        done = aicli(tmp_path / name, "backups")
        assert done.exit_code == status, done.output
    assert "BACKUP_TO has the backups of another stack" in done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with copied_database.provisioned_server() as server:
        yield server


@pytest.fixture
async def copied(server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CopiedDatabase]:
    monkeypatch.setattr(wal_shipping, "_LOOK_SECONDS", 0.05)
    async with copied_database.copied_database(server, tmp_path) as made:
        yield made


async def run(copied: CopiedDatabase, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "stack", *arguments, cwd=stacks.REPOSITORY,
        env={**os.environ, "AIMESH_HOME": str(copied.home.root)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_backup_is_made_and_listed(copied: CopiedDatabase) -> None:
    async with copied.shipping() as shipping:
        status, out, err = await run(copied, "backup", "--label", "before the move")
        assert status == 0, err
        assert f"# signed by: {copied.place.key.id}" in err
        status, out, err = await run(copied, "backup", "--json")
        made = json.loads(out)
        assert (made["label"], made["signed_by"]) == ("", copied.place.key.id)
        assert "signed by" not in err, "people are told once"
        await shipping.ship_partial()
        listed = json.loads((await run(copied, "backups", "--json"))[1])
    assert [each["label"] for each in listed["backups"]] == ["", "before the move"]
    assert listed["backups"][0]["name"] == made["name"]
    assert (listed["backups"][0]["verified_at"], listed["holes"]) == (None, [])
    assert listed["recoverable_from"] <= listed["recoverable_until"]
    status, out, err = await run(copied, "backups")
    assert (status, "before the move" in out, "any second can be restored from" in err) == (0, True, True)


async def test_backup_without_the_database_is_refused(copied: CopiedDatabase) -> None:
    copied.home.own_site.unlink()
    status, _, err = await run(copied, "backup")
    assert (status, "the backup agent has not taken this site's term yet" in err) == (2, True)
