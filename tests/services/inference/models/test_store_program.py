"""Pulling, adding and removing models, against a server on loopback with every fault that a download can meet."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from services.inference.models import download, model_store, store_program
from services.inference.models.model_store import ModelStore
from shared import errors
from shared.api.inference import Assignment, StoredModel, StoreLine, StoreRequest, StoreResult
from shared.model_reference import RemoteFile
from shared.timing.backoff import Backoff
from shared.types import ModelName
from tests.services.inference.models import ranged_server
from tests.services.inference.models.ranged_server import RangedServer

ROOT = Path(__file__).parents[4]
BODY = ranged_server.model_bytes(300_000)
OTHER = BODY[:-1] + b"!"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF", Backoff(first_seconds=0.001, longest_seconds=0.001))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def server() -> Iterator[RangedServer]:
    with ranged_server.serving(BODY) as site:
        yield site


def run(store: ModelStore, command: str, target: str = "", **options: object) -> StoreResult:
    request = StoreRequest(command=command, folder=str(store._root), target=target, **options)  # type: ignore[arg-type]  # the fields
    return store_program.carry_out(request)


def pull(store: ModelStore, target: str, **options: object) -> StoredModel:
    return run(store, "pull", target, **options).models[0]


def leftovers(store: ModelStore) -> list[str]:
    return sorted(path.name for path in (store._root / "partial").iterdir())


def test_model_is_pulled_under_the_name_of_its_file(store: ModelStore, server: RangedServer) -> None:
    pulled = pull(store, server.url + "?signature=secret")
    assert (pulled.name, pulled.digest, pulled.size) == ("some-model", server.digest, len(BODY))
    assert pulled.source == server.url, "the query may hold a secret"
    assert store.models() == (pulled,)
    assert store.blob(pulled.digest).read_bytes() == BODY
    assert leftovers(store) == []


def test_second_pull_replaces_the_file_unless_its_checksum_is_known(store: ModelStore, server: RangedServer) -> None:
    first = pull(store, f"{server.url}#sha256={server.digest}")
    again = run(store, "pull", f"{server.url}#sha256={server.digest}")
    assert (again.models, again.unchanged, server.sent_bytes) == ((first,), True, len(BODY))
    server.body = OTHER
    assert pull(store, server.url).digest == server.digest
    assert not store.blob(first.digest).exists(), "nothing refers to the old file"


def test_wrong_checksum_is_refused_and_the_file_deleted(store: ModelStore, server: RangedServer) -> None:
    with pytest.raises(errors.PeerError, match="but should have 0000"):
        pull(store, f"{server.url}#sha256={'0' * 64}")
    assert store.models() == ()
    assert pull(store, f"{server.url}#sha256={server.digest.upper()}").digest == server.digest


@pytest.mark.parametrize("fragment", ["sha256=12", "md5=1", "sha256=" + "g" * 64])
def test_checksum_that_is_none_is_refused(store: ModelStore, fragment: str) -> None:
    with pytest.raises(errors.BadRequest, match="after the # of the URL"):
        pull(store, f"https://example.org/x.gguf#{fragment}")


def test_truncated_response_is_continued_behind_its_last_byte(store: ModelStore, server: RangedServer) -> None:
    server.cuts = [100_000, 200_000]
    assert pull(store, server.url).digest == server.digest
    assert server.ranges() == [None, "bytes=100000-", "bytes=200000-"]
    assert server.sent_bytes == len(BODY)


def test_file_without_an_etag_is_not_continued_unless_its_checksum_is_known(store: ModelStore, server: RangedServer) -> None:
    server.etag, server.cuts = None, [100_000]
    assert pull(store, server.url).digest == server.digest
    assert server.ranges() == [None, None]
    server.cuts = [100_000]
    assert pull(store, f"{server.url}#sha256={server.digest}", name="other").digest == server.digest
    assert server.ranges()[2:] in ([], [None, "bytes=100000-"])


def test_file_that_changes_midway_is_downloaded_again(store: ModelStore, server: RangedServer) -> None:
    server.cuts, server.after_cut = [100_000], [(OTHER, '"two"')]
    pulled = pull(store, server.url)
    assert store.blob(pulled.digest).read_bytes() == OTHER
    assert [headers.get("If-Range") for headers in server.asked] == [None, '"one"']


def test_file_that_changes_all_the_time_is_given_up(store: ModelStore, server: RangedServer) -> None:
    server.cuts = [100_000] * 9
    server.after_cut = [(BODY, f'"{number}"') for number in range(9)]
    with pytest.raises(errors.Unavailable, match="could not be downloaded"):
        pull(store, server.url)


def test_server_errors_are_retried(store: ModelStore, server: RangedServer) -> None:
    server.statuses = [500, 503, 429]
    assert pull(store, server.url).digest == server.digest


def test_server_that_only_fails_is_given_up(store: ModelStore, server: RangedServer) -> None:
    server.statuses = [500] * 20
    with pytest.raises(errors.Unavailable, match="HTTP Error 500"):
        pull(store, server.url)
    assert len(server.asked) == download.MAX_FAILURES + 1


@pytest.mark.parametrize(
    ("status", "kind"), [(401, errors.NotAllowed), (403, errors.NotAllowed), (404, errors.NotFound), (400, errors.PeerError)]
)
def test_refusals_are_not_retried(store: ModelStore, server: RangedServer, status: int, kind: type[errors.AimeshError]) -> None:
    server.statuses = [status] * 9
    with pytest.raises(kind, match=str(status)):
        pull(store, server.url)
    assert len(server.asked) == 1


def test_server_that_stalls_is_given_up(store: ModelStore, server: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.05)
    server.stalled = threading.Event()
    with pytest.raises(errors.DeadlineExceeded, match="the server sent nothing"):
        pull(store, server.url)


def test_token_stays_with_its_server(store: ModelStore, server: RangedServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token\n")
    with ranged_server.serving(b"", redirect=server.url) as first:
        pull(store, first.url, token_file=str(tmp_path / "token"))
    assert first.asked[0]["Authorization"] == "Bearer secret-token"
    assert "Authorization" not in server.asked[0]


@pytest.mark.parametrize(
    "target",
    [
        "http://example.org/x.gguf",
        "http://127.0.0.1.example.org/x.gguf",
        "ftp://example.org/x.gguf",
        "file:///etc/passwd",
        "x.gguf",
        "https://",
    ],
)
def test_only_https_is_downloaded(store: ModelStore, target: str) -> None:
    with pytest.raises(errors.BadRequest, match=r"without TLS|not the start of a URL"):
        pull(store, target)


def test_redirect_to_plain_http_is_refused(store: ModelStore) -> None:
    with ranged_server.serving(b"", redirect="http://example.org/x.gguf") as first, pytest.raises(errors.BadRequest, match="without TLS"):
        pull(store, first.url)


def test_password_in_the_url_is_refused_without_repeating_it(store: ModelStore) -> None:
    with pytest.raises(errors.BadRequest, match="contains a password") as refused:
        pull(store, "https://me:hidden@example.org/x.gguf")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("name", ["..", "../x", "a/../b", "/etc/x", "a//b", "-x", ".x", "a b", "a\n", "a\\b", "", "x" * 101, "é", "a=b"])
def test_names_that_lead_elsewhere_are_refused(store: ModelStore, server: RangedServer, name: str) -> None:
    with pytest.raises(errors.BadRequest, match="can't be the name of a model"):
        model_store.check_store_name(name)
    for command in ("remove", "show"):
        if name:
            with pytest.raises(errors.NotFound, match="no model"):
                run(store, command, name)


def test_url_with_a_bad_file_name_is_refused_before_the_download(store: ModelStore, server: RangedServer) -> None:
    with pytest.raises(errors.BadRequest, match="can't be the name of a model"):
        pull(store, server.url.replace("some-model", "%2e%2e%2fx"))
    assert server.asked == []
    assert pull(store, server.url, name="org/model:q8").name == "org/model:q8"
    assert run(store, "remove", "org/model:q8").freed_bytes == len(BODY)


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"<html>Sign in</html>", "but a web page"), (b"GGUF" + b"\0" * 60, "not a usable model"), (b"", "not a usable model")],
)
def test_file_that_is_no_model_is_refused(store: ModelStore, server: RangedServer, body: bytes, reason: str) -> None:
    server.body = body
    with pytest.raises(errors.BadRequest, match=reason):
        pull(store, server.url)
    assert store.models() == ()
    run(store, "prune")
    assert [path for path in store._root.rglob("*") if path.is_file() and path.name != "lock"] == []


def test_full_disk_is_refused_before_the_download(store: ModelStore, server: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, model_store.RESERVED_BYTES + len(BODY) - 1))
    with pytest.raises(errors.TooLarge, match="too full"):
        pull(store, server.url)
    assert server.sent_bytes in (0, len(BODY))
    assert store.models() == ()


def test_disk_that_fills_up_leaves_a_part_to_resume(store: ModelStore, server: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cuts = [100_000]
    real = download.PartialFile.write
    monkeypatch.setattr(download.PartialFile, "write", _fails_once_full(real, 100_000))
    with pytest.raises(errors.TooLarge, match="No space left"):
        pull(store, server.url)
    monkeypatch.setattr(download.PartialFile, "write", real)
    assert pull(store, server.url).digest == server.digest
    assert server.ranges()[-1] == "bytes=100000-"


def test_disk_that_loses_data_is_noticed(store: ModelStore, server: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[int] = []

    def lose_once(handle: int) -> None:
        if not lost:
            lost.append(handle)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", lose_once)
    with pytest.raises((errors.TooLarge, OSError), match="Input/output error"):
        pull(store, server.url)
    assert store.models() == ()


def _fails_once_full(real: Callable[..., None], most: int) -> Callable[..., None]:
    class _FullFile:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    def write(self: download.PartialFile, chunk: bytes) -> None:
        if self.size >= most:
            self._file = _FullFile(self._file)  # type: ignore[assignment]
        real(self, chunk)

    return write


def test_file_that_changed_since_a_copy_was_broken_off_is_copied_anew(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "mine #1.gguf"
    file.write_bytes(BODY)
    key = RemoteFile(url=file.as_uri()).key
    store.ensure_folders()
    (store._root / "partial" / key).write_bytes(OTHER)
    (store._root / "partial" / f"{key}.json").write_text(json.dumps({"etag": "", "size": len(OTHER)}))
    added = run(store, "add", str(file), name="mine").models[0]
    assert (added.size, added.source) == (len(BODY), str(file))
    assert store.blob(added.digest).read_bytes() == BODY
    assert leftovers(store) == []


def test_quota_counts_what_is_there(store: ModelStore, server: RangedServer) -> None:
    quota = str(2 * len(BODY) - 1)
    pull(store, server.url, quota=quota)
    assert store.used_bytes() == len(BODY)
    with pytest.raises(errors.TooLarge, match="the store may use"):
        pull(store, server.url + "?other", name="second", quota=quota)
    run(store, "remove", "some-model")
    assert pull(store, server.url + "?other", name="second", quota=quota).size == len(BODY)


# --- as the program that aicli starts ----------------------------------------------------------------------------------------


def started(store: ModelStore, command: str, target: str = "") -> "subprocess.Popen[bytes]":
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    program, pipe = [sys.executable, "-m", "services.inference.models.store_program"], subprocess.PIPE
    process = subprocess.Popen(program, stdin=pipe, stdout=pipe, env=environment)
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(json.dumps({"command": command, "folder": str(store._root), "target": target}).encode())
    return process


def read_line(process: "subprocess.Popen[bytes]") -> StoreLine:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it ended without a result"
    return msgspec.json.decode(line, type=StoreLine)


def result_of(process: "subprocess.Popen[bytes]") -> StoreResult:
    while (result := read_line(process).result) is None:
        pass
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 0
    return result


def wait_for(process: "subprocess.Popen[bytes]", step: str) -> None:
    while (progress := read_line(process).progress) is None or step not in progress.step:
        pass


def test_killed_download_is_resumed(store: ModelStore, server: RangedServer) -> None:
    server.cuts = [150_000]
    process = started(store, "pull", server.url)
    wait_for(process, "retrying")
    os.kill(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == -signal.SIGKILL
    assert result_of(started(store, "pull", server.url)).problem is None
    assert [model.digest for model in store.models()] == [server.digest]
    assert server.ranges()[-1] == "bytes=150000-"
    assert leftovers(store) == []


def test_two_pulls_at_once_make_one_download(store: ModelStore, server: RangedServer) -> None:
    server.gate.clear()
    first = started(store, "pull", server.url)
    while not server.asked:
        assert first.poll() is None
    second = started(store, "pull", server.url)
    wait_for(second, "waiting for another download")
    server.gate.set()
    assert [result_of(process).unchanged for process in (first, second)] == [False, True]
    assert server.sent_bytes == len(BODY)


def test_what_the_mesh_put_here_and_a_person_removes_is_refused_until_they_pull_it(store: ModelStore, server: RangedServer) -> None:
    pull(store, server.url, name=ModelName("mine"))
    run(store, "remove", "mine")
    assert store.refused() == ()
    pull(store, server.url, name=ModelName("team/its@2"), assignment=Assignment())
    run(store, "remove", "team/its@2")
    assert store.refused() == ("team/its",)
    pull(store, server.url, name=ModelName("team/its"))
    assert store.refused() == ()


def test_errors_are_reported_as_problems(store: ModelStore) -> None:
    problem = result_of(started(store, "show", "nothing")).problem
    assert problem is not None
    assert (problem.code, "it has: none" in problem.message) == ("not_found", True)


def test_large_file_needs_little_memory(store: ModelStore, tmp_path: Path) -> None:
    """At most 64 MB more than a small one."""
    peaks = {}
    for size in (1_000_000, 150_000_000):
        with ranged_server.serving(ranged_server.model_bytes(1000) + bytes(size)) as site:
            code = (
                "from services.inference.models import store_program\n"
                "store_program.main()\n"
                "print(chr(10), next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1], sep='')\n"
            )
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
            request = json.dumps({"command": "pull", "folder": str(store._root), "target": site.url, "name": f"m{size}"})
            ran = subprocess.run(
                [sys.executable, "-c", code], input=request.encode(), capture_output=True, env=environment, timeout=120, check=True
            )
            peaks[size] = int(ran.stdout.splitlines()[-1])
    assert len(store.models()) == 2
    assert peaks[150_000_000] - peaks[1_000_000] < 64 * 1024
