"""Digests survive a restart of the worker: remembered for unchanged files, recomputed for all others."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.inference.engine import file_stamps
from services.inference.models import model_files
from services.inference.models.model_files import KnownDigests

DAY_NS = 86_400 * 10**9
DIGEST = "ab" * 32


def tomorrow() -> int:
    """Return a time by which files written now have long been settled."""
    return time.time_ns() + DAY_NS


class Reading:
    """Computes digests, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, files: tuple[Path, ...]) -> str:
        self.count += 1
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "node.digests"


def digest_of(kept: Path | None, *files: Path, read: Callable[[tuple[Path, ...]], str] | None = None) -> tuple[str, int]:
    """Return the digest from a newly started worker, and how often it read the files."""
    reading = Reading()
    return KnownDigests(kept, tomorrow).digest(files, read or reading), reading.count


def test_restarted_worker_reads_no_model_file(model: Path, kept: Path) -> None:
    right = hashlib.sha256(b"weights").hexdigest()
    assert digest_of(kept, model) == (right, 1)
    assert digest_of(kept, model) == (right, 0)
    assert kept.stat().st_mode & 0o777 == 0o600


def test_without_a_file_nothing_is_stored(model: Path) -> None:
    assert [digest_of(None, model)[1] for _ in range(2)] == [1, 1]


def rewrite(model: Path) -> None:
    """Rewrite the file; its size and modification time stay the same."""
    before = model.stat()
    model.write_bytes(b"weighty")
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(model: Path) -> None:
    """Replace the file by another of the same size and modification time."""
    before = model.stat()
    other = model.with_suffix(".new")
    other.write_bytes(b"weighty")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(model)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda model: model.write_bytes(b"weights and more"), id="longer"),
        pytest.param(lambda model: model.write_bytes(b"weighty"), id="as long, and younger"),
        pytest.param(rewrite, id="as long, and its time set back"),
        pytest.param(replace, id="another file in its place"),
        pytest.param(os.utime, id="touched"),
    ],
)
def test_changed_file_is_read_again_and_remembered(model: Path, kept: Path, change: Callable[[Path], object]) -> None:
    digest_of(kept, model)
    change(model)
    right = hashlib.sha256(model.read_bytes()).hexdigest()
    assert digest_of(kept, model) == (right, 1)
    assert digest_of(kept, model) == (right, 0)


@pytest.mark.parametrize("field", file_stamps.Stamp.__struct_encode_fields__)
def test_stored_digest_is_ignored_if_any_part_of_the_stamp_differs(model: Path, kept: Path, field: str) -> None:
    digest_of(kept, model)
    written = json.loads(kept.read_bytes())
    (stamp,) = written["models"][0]["stamps"]
    stamp[field] = "/elsewhere" if field == "path" else stamp[field] + 1
    kept.write_text(json.dumps(written))
    assert digest_of(kept, model)[1] == 1


def test_all_parts_of_a_split_model_count(model: Path, kept: Path) -> None:
    second = model.with_name("b.gguf")
    second.write_bytes(b"more")
    digest_of(kept, model, second)
    assert digest_of(kept, model, second) == (hashlib.sha256(b"weightsmore").hexdigest(), 0)
    assert digest_of(kept, model)[1] == 1
    second.write_bytes(b"much more")
    assert digest_of(kept, model, second)[1] == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"models":[{', id="cut off"),
        pytest.param(b"\x00\xff" * 40, id="noise"),
        pytest.param(b'{"models":7}', id="another shape"),
        pytest.param(b"[" * 100_000, id="nested without end"),
        pytest.param(b'{"models":[],"x":"' + b" " * model_files.MAX_BYTES + b'"}', id="larger than it ever is"),
    ],
)
def test_damaged_digest_file_is_ignored(model: Path, kept: Path, content: bytes) -> None:
    kept.write_bytes(content)
    kept.chmod(0o600)
    assert digest_of(kept, model)[1] == 1
    assert digest_of(kept, model)[1] == 0


def test_invalid_stored_digest_is_ignored(model: Path, kept: Path) -> None:
    right, _ = digest_of(kept, model)
    kept.write_text(kept.read_text().replace(right, right[:-1] + "X"))
    assert digest_of(kept, model) == (right, 1)


def test_missing_model_has_no_digest(model: Path, kept: Path) -> None:
    kept.write_text(json.dumps({"models": [{"stamps": [], "sha256": DIGEST}]}))
    assert digest_of(kept, model.with_name("gone.gguf"), read=lambda _files: "") == ("", 0)


def test_stamp_matches_the_file_system(model: Path) -> None:
    (stamp,), found = file_stamps.stamps_of((model,)), model.stat()
    assert stamp == file_stamps.Stamp(str(model), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def test_digest_file_writable_by_others_is_ignored(model: Path, kept: Path) -> None:
    digest_of(kept, model)
    kept.chmod(0o666)
    assert digest_of(kept, model)[1] == 1
    assert kept.stat().st_mode & 0o777 == 0o600


def test_recently_changed_file_is_never_remembered(model: Path, kept: Path) -> None:
    """A later write in the same tick of the file system's clock would show the same time."""
    just_now = max(model.stat().st_mtime_ns, model.stat().st_ctime_ns)
    KnownDigests(kept, lambda: just_now + model_files.TICK_NS).digest((model,), Reading())
    assert not kept.exists()
    KnownDigests(kept, lambda: just_now + model_files.TICK_NS + 1).digest((model,), Reading())
    assert kept.exists()


def test_file_that_changes_while_it_is_read_is_not_remembered(model: Path, kept: Path) -> None:
    def reads(files: tuple[Path, ...]) -> str:
        model.write_bytes(b"grown meanwhile")
        return DIGEST

    assert digest_of(kept, model, read=reads)[0] == DIGEST
    assert not kept.exists()


def test_unreadable_file_is_not_remembered(model: Path, kept: Path) -> None:
    digest_of(kept, model, read=lambda _files: "")
    digest_of(kept, model.with_name("gone.gguf"), read=lambda _files: DIGEST)
    assert not kept.exists()


def test_unwritable_folder_only_slows_the_next_start(model: Path, tmp_path: Path) -> None:
    assert digest_of(tmp_path / "nowhere" / "node.digests", model)[1] == 1


def test_file_name_that_is_not_unicode_is_remembered(model: Path, kept: Path) -> None:
    odd = model.with_name(os.fsdecode(b"\xff.gguf"))
    model.rename(odd)
    assert [digest_of(kept, odd)[1] for _ in range(2)] == [1, 0]


def test_digest_file_stays_small_and_keeps_the_latest(model: Path, kept: Path) -> None:
    known = KnownDigests(kept, tomorrow)
    paths = [model.with_name(f"{number}.gguf") for number in range(model_files.MAX_MODELS + 3)]
    for path in paths:
        path.touch()
        known.digest((path,), Reading())
    assert len(json.loads(kept.read_bytes())["models"]) == model_files.MAX_MODELS
    assert digest_of(kept, paths[-1])[1] == 0
    assert digest_of(kept, paths[0])[1] == 1
    # A model with too many parts to store next to others.
    many = tuple(paths[:100]) * 60
    digest_of(kept, *many)
    assert kept.stat().st_size <= model_files.MAX_BYTES


def test_models_read_concurrently_are_all_remembered(model: Path, kept: Path) -> None:
    paths = [model.with_name(f"{number}.gguf") for number in range(20)]
    for path in paths:
        path.touch()
    known = KnownDigests(kept, tomorrow)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda path: known.digest((path,), Reading()), paths))
    assert [digest_of(kept, path)[1] for path in paths] == [0] * 20
    assert [path.name for path in kept.parent.iterdir() if path.name.startswith(".")] == []
