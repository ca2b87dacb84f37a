import io
import tarfile
from pathlib import Path

import pytest

from features.backup.stack.agent import backup_files
from shared import errors
from stack import initialization
from stack import stack_home as homes
from stack.stack_home import StackHome


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    home = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    initialization.ensure(home, {"HF_TOKEN": "hf-canary"}, tmp_path)
    return home


def read(pieces: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(pieces), mode="r:") as archive:
        return {member.name: opened.read() for member in archive if (opened := archive.extractfile(member)) is not None}


def test_everything_that_an_empty_home_needs_is_in_one_of_two_lists(home: StackHome) -> None:
    for name in (
        "keys/gateway.journal",
        "keys/worker.receipts",
        "keys/gateway.mesh",
        "keys/gateway.mesh.lock",
        "profile.toml",
        "admin.txt",
    ):
        (home.root / name).write_text("x")
    for name in (
        "audit_anchors.jsonl",
        "recovery_log/recovery_state",
        "recovery_log/usage_export-one-2026-01-02.jsonl",
        "recovery_log/auth.jsonl",
        "tls/key.pem",
        "run/restore_points.jsonl",
    ):
        (home.root / name).parent.mkdir(exist_ok=True)
        (home.root / name).write_text("x")
    found = backup_files.collect(home, {"TLS_KEY_FILE": str(home.root / "tls/key.pem"), "TLS_CERT_FILE": "/etc/ssl/cert.pem"})
    secrets, files = ({str(path) for path in paths} for paths in (found.secrets, found.files))
    assert {f"secrets/nats_{name}.nk" for name in ("issuer", "callout", "sys")} | {"secrets/enrollment.json"} <= secrets
    assert {"secrets/mesh_ca.nk", "secrets/data_key", "secrets/recovery.nk", "secrets/environment/hf_token"} <= secrets
    assert {"keys/auth.nk", "keys/backup.nk", "profile.toml", "admin.txt", "tls/key.pem"} <= secrets
    assert files == {
        "stack.env", "run/restore_points.jsonl", "audit_anchors.jsonl",
        "recovery_log/recovery_state", "recovery_log/usage_export-one-2026-01-02.jsonl",
        "keys/gateway.journal", "keys/worker.receipts", "keys/gateway.mesh",
    }  # fmt: skip
    # Every secret of this stack on disk.
    on_disk = {str(path.relative_to(home.root)) for folder in (home.secrets, home.keys) for path in folder.rglob("*") if path.is_file()}
    assert on_disk - secrets - files == {"keys/gateway.mesh.lock"}


def test_nothing_readable_without_the_operator_contains_a_secret(home: StackHome) -> None:
    found = backup_files.collect(home, {})
    secrets = {(home.root / path).read_bytes().strip() for path in found.secrets if not path.name.startswith("database_url")}
    text = b"".join(backup_files.archive(home.root, found.files))
    assert [secret for secret in secrets if secret in text] == []


def test_an_archive_has_the_files_and_what_was_made(home: StackHome) -> None:
    (home.root / "large").write_bytes(bytes(range(256)) * 10_000)
    archive = b"".join(backup_files.archive(home.root, [Path("large"), Path("gone"), Path("stack.env")], {"models.json": b"[]"}))
    assert read(archive) == {
        "large": bytes(range(256)) * 10_000, "stack.env": (home.root / "stack.env").read_bytes(), "models.json": b"[]"
    }  # fmt: skip


def test_a_file_that_grows_is_cut_where_it_was(home: StackHome) -> None:
    large = home.root / "large"
    large.write_bytes(b"a" * (3 << 20))
    pieces = backup_files.archive(home.root, [Path("large")])
    first = next(pieces)
    with large.open("ab") as file:
        file.write(b"b" * 1000)
    assert read(first + b"".join(pieces)) == {"large": b"a" * (3 << 20)}


def test_a_file_that_shrinks_ends_the_backup(home: StackHome) -> None:
    large = home.root / "large"
    large.write_bytes(b"a" * (3 << 20))
    pieces = backup_files.archive(home.root, [Path("large")])
    next(pieces)
    large.write_bytes(b"")
    with pytest.raises(errors.Unavailable, match="large was replaced while it was read"):
        list(pieces)


def test_the_models_are_listed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y.gguf").write_bytes(b"1234")
    assert backup_files.list_models(tmp_path) == b'[{"path":"x/y.gguf","size":4}]'
    assert backup_files.list_models(tmp_path / "missing") == b"[]"
