"""`aicli batch` against a mesh that stores files and keeps batches."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from cli.output.exit_codes import ExitCode
from features.files.cli import commands as files_module
from features.jobs.cli import batch_runs
from features.jobs.contract import JobState
from features.jobs.gateway.rules.batch_input import BatchInput
from shared.timing.backoff import Backoff
from tests.cli.fake_mesh import Shell
from tests.features.jobs.cli.batch_mesh import BatchMesh, identify, lines

FIRST, SECOND = identify("batch_", 0), identify("batch_", 1)


@pytest.fixture
def mesh(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> BatchMesh:
    monkeypatch.setattr(batch_runs, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(batch_runs, "_BACKOFF", Backoff(0.0, 0.0))
    (shell.folder / "in.jsonl").write_bytes(lines("a", "b", "c", "d"))
    return BatchMesh(shell.mesh)


def results(text: str) -> list[str]:
    return [json.loads(line)["custom_id"] for line in text.splitlines()]


def test_answers_and_errors_are_in_the_order_of_the_file(shell: Shell, mesh: BatchMesh) -> None:
    mesh.failing = {"b", "d"}
    done = shell("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert results((shell.folder / "out.jsonl").read_text()) == ["a", "b", "c", "d"], done.stderr
    assert (done.stdout, done.exit_code) == ("", ExitCode.INCOMPLETE)
    assert "Completed, 4 of 4, 2 failed, 0.0015 credits" in done.stderr
    assert f"2 lines without an answer. To run them again: aicli batch retry {FIRST}" in done.stderr
    assert results(shell("batch", "results", FIRST).stdout) == ["a", "b", "c", "d"]


def test_a_batch_without_errors_is_a_success_on_stdout(shell: Shell, mesh: BatchMesh) -> None:
    (shell.folder / "in.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + lines("b", "a", url="/v1/embeddings"))
    done = shell("batch", "run", "in.jsonl")
    assert (results(done.stdout), done.exit_code) == (["b", "a"], 0)
    (request,) = mesh.created
    assert (request.endpoint, request.window, request.metadata["file"]) == ("/v1/embeddings", "24h", "in.jsonl")


def test_the_same_command_attaches_and_uploads_nothing(shell: Shell, mesh: BatchMesh) -> None:
    mesh.end_at_look = None
    assert shell("batch", "run", "in.jsonl", "--detach").stdout == f"{FIRST}\n"
    assert shell("batch", "run", "in.jsonl", "--detach", "--endpoint", "/v1/completions").stdout == f"{SECOND}\n"
    stored = set(mesh.contents)
    for _ in range(2):
        done = shell("batch", "run", "in.jsonl", "--detach")
        assert (done.stdout, f"attached to {FIRST}" in done.stderr) == (f"{FIRST}\n", True)
    assert set(mesh.contents) == stored
    mesh.end_at_look = JobState.COMPLETED
    assert results(shell("batch", "run", "in.jsonl").stdout) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("state", "hours", "is_new"),
    [
        (JobState.COMPLETED, 1, False),
        (JobState.EXPIRED, 1, False),
        (JobState.COMPLETED, 25, True),
        (JobState.FAILED, 1, True),
        (JobState.CANCELLED, 1, True),
    ],
)
def test_what_has_ended_without_results_or_long_ago_is_run_again(
    shell: Shell, mesh: BatchMesh, state: JobState, hours: int, is_new: bool
) -> None:
    shell("batch", "run", "in.jsonl")
    mesh.jobs[FIRST] = replace(mesh.jobs[FIRST], state=state, ended_at=mesh.now - timedelta(hours=hours))
    assert shell("batch", "run", "in.jsonl", "--detach").stdout == f"{SECOND if is_new else FIRST}\n"


def test_commands_that_find_the_same_make_one_batch_and_again_makes_another(shell: Shell, mesh: BatchMesh) -> None:
    shell("batch", "run", "in.jsonl")
    shell("batch", "run", "in.jsonl", "--again")
    assert set(mesh.jobs) == {FIRST, SECOND}
    # The first command of two at once made its batch after the second one had looked for it.
    mesh.hidden = 1
    del mesh.jobs[SECOND]
    assert shell("batch", "run", "in.jsonl", "--detach").stdout == f"{FIRST}\n"
    first, second, at_once = (request.idempotency_key for request in mesh.created)
    assert first == at_once != second


def test_before_there_is_a_batch_it_gives_up_after_a_while(shell: Shell, mesh: BatchMesh) -> None:
    mesh.away = 5
    done = shell("batch", "run", "in.jsonl")
    assert (done.exit_code, done.stderr.count("the database is away")) == (0, 1)
    mesh.away = batch_runs._MAX_FAILURES
    done = shell("batch", "run", "in.jsonl")
    assert (done.exit_code, done.stderr.count("the database is away")) == (ExitCode.NOTHING_SERVES, 2)


def test_once_there_is_a_batch_it_waits_without_end(shell: Shell, mesh: BatchMesh) -> None:
    mesh.away_after_creation = 3 * batch_runs._MAX_FAILURES
    done = shell("batch", "run", "in.jsonl")
    assert (done.exit_code, done.stderr.count("the database is away")) == (0, 1)


def test_ctrl_c_detaches_and_says_how_to_come_back(shell: Shell, mesh: BatchMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_runs.BatchClient, "_tell", interrupt)
    done = shell("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == ExitCode.INTERRUPTED
    assert f"aicli batch results {FIRST} -o out.jsonl. To stop it: aicli batch cancel {FIRST}" in done.stderr
    assert not (shell.folder / "out.jsonl").exists()


def test_a_refused_file_is_a_bad_request_with_its_lines(shell: Shell, mesh: BatchMesh) -> None:
    mesh.end_at_look = JobState.FAILED
    done = shell("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == ExitCode.USAGE
    assert "line 2: is no JSON\nline 3: is twice\n" in done.stderr
    assert not (shell.folder / "out.jsonl").exists()
    shown = shell("batch", "show", FIRST).stdout
    assert "state       Failed (line 2: is no JSON)" in shown
    assert "line 3: is twice" in shown
    assert "line 2: is no JSON" in shell("batch", "list", "-o", "wide").stdout


def test_retry_runs_the_failed_lines_once(shell: Shell, mesh: BatchMesh) -> None:
    mesh.failing = {"b", "d"}
    shell("batch", "run", "in.jsonl")
    mesh.end_at_look = None
    for _ in range(2):
        assert shell("batch", "retry", FIRST).stdout == f"{SECOND}\n"
    assert mesh.contents[mesh.created[1].input_file] == lines("b", "d")
    assert mesh.created[1].metadata == {"file": "in.jsonl", "retry_of": FIRST}
    mesh.end_at_look = JobState.COMPLETED
    assert shell("batch", "results", SECOND).exit_code == ExitCode.INCOMPLETE
    # The same lines fail again: this is another batch.
    assert shell("batch", "retry", SECOND).stdout == f"{identify('batch_', 2)}\n"
    mesh.failing = set()
    shell("batch", "results", identify("batch_", 2))
    done = shell("batch", "retry", identify("batch_", 2))
    assert (done.exit_code, "has no lines that failed" in done.stderr) == (ExitCode.USAGE, True)


def test_what_cannot_be_a_batch_is_refused_before_any_call(shell: Shell, mesh: BatchMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, words in (
        (b"", "is no request of a batch"),
        (b"\xff\n", "is no request of a batch"),
        (b"[1]\n", "is no request of a batch"),
        (b'{"url": "/v1/files"}\n', "Invalid enum value '/v1/files'"),
    ):
        (shell.folder / "bad.jsonl").write_bytes(content)
        done = shell("batch", "run", "bad.jsonl")
        assert (done.exit_code, words in done.stderr) == (ExitCode.USAGE, True), done.stderr
    assert "is missing" in shell("batch", "run", "none.jsonl").stderr
    assert "there is no folder" in shell("batch", "run", "in.jsonl", "-o", "none/out.jsonl").stderr
    monkeypatch.setattr(files_module, "_MAX_MESH_BYTES", 4)
    assert "aicli login --url URL" in shell("batch", "run", "in.jsonl").stderr
    monkeypatch.setattr("features.jobs.cli.commands.MAX_BATCH_BYTES", 3)
    assert "split it" in shell("batch", "run", "in.jsonl").stderr
    assert not shell.mesh.calls


def test_json_is_the_batch_itself(shell: Shell, mesh: BatchMesh) -> None:
    done = shell("batch", "run", "in.jsonl", "-o", "out.jsonl", "--json")
    assert json.loads(done.stdout)["state"] == "completed"
    assert results((shell.folder / "out.jsonl").read_text()) == ["a", "b", "c", "d"]
    assert json.loads(shell("batch", "run", "in.jsonl", "--json").stdout)["id"] == FIRST


def test_the_file_to_try_it_with_is_a_batch_of_1000_lines() -> None:
    read = BatchInput("/v1/chat/completions")
    assert len([*read.read(Path("tests/data/1000.jsonl").read_bytes()), *read.end()]) == 1000
    assert (read.errors, read.model) == ([], "smollm2")
