from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared import errors
from stack import stack_home, stack_plan, up_down
from stack.recovery.sites import replaced
from stack.recovery.sites.site_terms import SiteRecord


async def test_a_replaced_site_does_not_start(tmp_path: Path) -> None:
    home = stack_home.locate({"AIMESH_HOME": str(tmp_path / "home")})
    replaced.ensure_not_replaced(home)
    stack_home.ensure_folders(home)
    at = datetime(2026, 11, 25, 2, 50, tzinfo=UTC)
    replaced.record(home, SiteRecord(term=2, site="rome", url="https://rome.example", at=at, nonce="1"))
    before = sorted(home.root.rglob("*"))
    expected = r"this site was replaced by rome \(https://rome.example\) at 2026-11-25 02:50:00 UTC"
    with pytest.raises(errors.BadSettings, match=expected) as caught:
        await up_down.up(home, {}, tmp_path, print, lambda _settings: pytest.fail("it starts"))  # type: ignore[arg-type,return-value]
    assert "aicli stack standby --replace" in caught.value.hint
    assert sorted(home.root.rglob("*")) == before, "nothing was changed"


def test_an_unreadable_record_refuses_too(tmp_path: Path) -> None:
    home = stack_home.locate({"AIMESH_HOME": str(tmp_path / "home")})
    stack_home.ensure_folders(home)
    (home.run / "replaced.json").write_text("{")
    with pytest.raises(errors.BadSettings, match="another site may have taken over"):
        replaced.ensure_not_replaced(home)


def test_a_home_with_backups_and_without_its_database_starts_no_empty_one(tmp_path: Path) -> None:
    home = stack_home.locate({"AIMESH_HOME": str(tmp_path / "home")})
    stack_home.ensure_folders(home)
    server = stack_plan.postgres_of(home)
    replaced.ensure_database_is_there(home, server)
    home.own_site.write_text("{}")
    with pytest.raises(errors.BadSettings, match="is gone, and there are backups of it") as refusal:
        replaced.ensure_database_is_there(home, server)
    assert "aicli stack restore latest --replace" in refusal.value.hint
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("18")
    replaced.ensure_database_is_there(home, server)
