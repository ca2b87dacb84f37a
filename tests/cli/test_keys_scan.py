"""`aicli keys scan`: its report of leaked keys for people, scripts and hooks, and `--revoke`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from shared import errors
from shared.api import auth
from shared.types import KeyId, UserId
from tests.cli.account.test_leaked_keys import key
from tests.cli.fake_mesh import Shell

LEAKED = key()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".env").write_text(f"AIMESH_API_KEY={LEAKED}\n")
    return folder


def listed(preview: str, *, is_active: bool = True) -> auth.ApiKeys:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    return auth.ApiKeys((auth.ApiKey(KeyId(UUID(int=7)), UserId(UUID(int=1)), "laptop", preview, is_active, at),))


def preview_of(secret: str) -> str:
    return f"{secret[:12]}…{secret[-4:]}"


def test_findings_are_printed_without_the_secret_and_exit_with_1(shell: Shell, tree: Path) -> None:
    done = shell("keys", "scan", str(tree))
    assert done.exit_code == 1
    assert ".env:1: API key " in done.stdout
    assert LEAKED not in done.output
    assert shell.mesh.calls == []


def test_clean_tree_exits_with_0(shell: Shell, tree: Path) -> None:
    (tree / ".env").unlink()
    done = shell("keys", "scan", str(tree), "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])


def test_revoke_uses_each_found_key_itself(shell: Shell, tree: Path) -> None:
    shell.mesh.answer(auth.list_api_keys, listed(preview_of(LEAKED)))
    shell.mesh.answer(auth.revoke_api_key, listed(preview_of(LEAKED), is_active=False).keys[0])
    (row,) = json.loads(shell("keys", "scan", str(tree), "--revoke", "--json").stdout)
    assert row["now"] == "revoked now"
    assert [(each.method, each.credential) for each in shell.mesh.calls] == [("auth.listApiKeys", LEAKED), ("auth.revokeApiKey", LEAKED)]


def test_old_secret_of_a_rotated_key_is_not_reported_as_revoked(shell: Shell, tree: Path) -> None:
    """The old secret is valid until its overlap ends, and the list shows the key under its new secret."""
    shell.mesh.answer(auth.list_api_keys, listed(preview_of(key(random="Zz9" * 14 + "q"))))
    done = shell("keys", "scan", str(tree), "--revoke")
    assert "STILL WORKS (old secret of a rotated key)" in done.stdout
    assert "revoked now" not in done.stdout
    assert [each.method for each in shell.mesh.calls] == ["auth.listApiKeys"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.NotAuthenticated("this key was revoked"), "no longer works"),
        (errors.NotAllowed("this key may not list keys"), "STILL WORKS and may not revoke itself: aicli keys revoke"),
    ],
)
def test_failed_revocation_says_why(shell: Shell, tree: Path, error: errors.AimeshError, message: str) -> None:
    shell.mesh.answer(auth.list_api_keys, error)
    (row,) = json.loads(shell("keys", "scan", str(tree), "--revoke", "--json").stdout)
    assert row["now"] == message
