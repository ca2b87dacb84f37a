"""Leaked keys are found by their checksum, whatever surrounds them."""

import subprocess
from pathlib import Path

import pytest

from cli.account import leaked_keys
from shared.identity import credentials

RANDOM = "Ab3" * 14 + "z"


def key(kind: str = "live", random: str = RANDOM) -> str:
    return credentials.PREFIXES[kind] + random + credentials.checksum(random)


def test_every_kind_of_secret_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    ticket = "aip_join_" + "x" * 100
    (tmp_path / "deep" / "er" / ".env").write_text(f"A=1\nAIMESH_API_KEY={key()}\nB={key('adm')};C='{key('test')}'\n")
    (tmp_path / "notes.md").write_text(f"join with `{ticket}`")
    found = [(leak.path.name, leak.line, leak.kind, leak.secret) for leak in leaked_keys.find(tmp_path)]
    assert found == [
        ("notes.md", 1, "ticket", ticket),
        (".env", 2, "API key", key()),
        (".env", 3, "ADMIN KEY", key("adm")),
        (".env", 3, "test key", key("test")),
    ]


def test_lookalikes_are_ignored(tmp_path: Path) -> None:
    wrong = key()[:-1] + ("0" if key()[-1] != "0" else "1")
    (tmp_path / "a").write_text(f"{wrong} aip_live_short aip_live_… {key()[:-1]}")
    assert list(leaked_keys.find(tmp_path)) == []


def test_binary_content_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"\xff\x00\xfe" * 50 + key().encode() + b"\x80\n" * 3)
    assert [leak.secret for leak in leaked_keys.find(tmp_path)] == [key()]


def test_tool_folders_and_links_are_skipped(tmp_path: Path) -> None:
    for name in (".git", "node_modules", ".venv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config").write_text(key())
    (tmp_path / "real").write_text(key())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "round").symlink_to(tmp_path)
    assert [leak.path.name for leak in leaked_keys.find(tmp_path)] == ["real"]


def test_single_file_can_be_scanned(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(key())
    assert [leak.line for leak in leaked_keys.find(tmp_path / "one")] == [1]


def test_this_repository_contains_no_key() -> None:
    root = Path(__file__).parents[3]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git, so what belongs to the repository is not known")
    files = [root / name for name in listed.stdout.decode().split("\0") if name]
    found = [leak for path in files if path.is_file() for leak in leaked_keys.find(path) if leak.is_key]
    assert [(str(leak.path.relative_to(root)), leak.line) for leak in found] == []
