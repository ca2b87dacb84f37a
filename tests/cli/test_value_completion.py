"""Shell completion of values: from the mesh, for a minute from a file, and nothing after any failure."""

import asyncio
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from click.shell_completion import ShellComplete

from cli import main, profile, value_completion
from cli.cli_context import CliContext
from cli.connection import CliConnection
from cli.profile import Profile
from shared import errors
from shared.api import auth, gateway
from shared.api.auth import ApiKey, ApiKeys
from shared.api.gateway import NodeRow, NodeRows, ServedModel, ServedModels
from shared.types import KeyId, ModelName, NodeId, Role, UserId
from tests.cli.conftest import KEY
from tests.cli.fake_mesh import Shell

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def complete(shell: Shell, *words: str, incomplete: str = "") -> list[str]:
    here = CliContext(shell.environment, shell.folder, shell.mesh.open)
    found = ShellComplete(main.aicli, {"obj": here}, "aicli", "_AICLI_COMPLETE").get_completions(list(words), incomplete)
    return [item.value for item in found]


def api_key(name: str, number: int, *, is_active: bool = True) -> ApiKey:
    return ApiKey(KeyId(UUID(int=number)), UserId(UUID(int=9)), name, "aip_live_…1234", is_active, NOW)


def node(key: str, service: str, *models: str) -> NodeRow:
    return NodeRow(
        NodeId(key), Role.WORKER, service, "nats", True, True, "", tuple(map(ModelName, models)), NOW, "0.2.0", 0, 0, 1
    )  # fmt: skip


@pytest.fixture
def full_shell(shell: Shell) -> Shell:
    shell.mesh.answer(gateway.list_models, ServedModels((ServedModel(ModelName("smollm2"), 1, 2048, ("llama3",)),)))
    shell.mesh.answer(auth.list_api_keys, ApiKeys((api_key("laptop", 1), api_key("first key", 2), api_key("old", 3, is_active=False))))
    shell.mesh.answer(gateway.list_nodes, NodeRows((node("UAAAAAAAAAA", "inference", "smollm2"), node("UBBBBBBBBBB", "web"))))
    return shell


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["infer", "--model"], ["smollm2", "llama3"]),
        (["chat", "-m"], ["smollm2", "llama3"]),
        (["models", "load"], ["smollm2", "llama3"]),
        (["models", "unload", "smollm2", "--worker"], ["UAAAAAAAA"]),
        (["admin", "nodes", "revoke"], ["UAAAAAAAA", "UBBBBBBBB"]),
        # A name with a space would be split into two words.
        (["keys", "revoke"], ["laptop", str(UUID(int=2))]),
    ],
)
def test_values_come_from_the_mesh(full_shell: Shell, words: list[str], values: list[str]) -> None:
    assert complete(full_shell, *words) == values
    assert complete(full_shell, *words, incomplete=values[0][:3]) == values[:1]
    # The second time, they come from the file.
    assert len(full_shell.mesh.calls) == 1


def test_profiles_and_conversations_come_from_this_machine(shell: Shell) -> None:
    folder = profile.folder_of_user(shell.environment)
    folder.mkdir(parents=True)
    (folder / "work.toml").touch()
    chats = Path(shell.environment["HOME"]) / ".local/state/aimesh/chats"
    chats.mkdir(parents=True)
    (chats / "mine.json").write_text("{}")
    assert complete(shell, "profile", "use") == ["work"]
    assert complete(shell, "--profile") == ["work"]
    assert complete(shell, "chat", "--load") == ["mine"]
    assert shell.mesh.calls == []


def test_kept_values_are_private_and_belong_to_one_profile(full_shell: Shell) -> None:
    assert complete(full_shell, "infer", "--model")
    (path,) = (Path(full_shell.environment["HOME"]) / ".cache/aimesh/completion").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KEY not in path.read_text()
    full_shell.environment["AICLI_API_KEY"] = "another"
    assert complete(full_shell, "infer", "--model")
    assert len(full_shell.mesh.calls) == 2


@pytest.mark.parametrize("change", ["old", "from the future", "damaged"])
def test_kept_values_that_are_of_no_use_are_replaced(full_shell: Shell, change: str) -> None:
    assert complete(full_shell, "infer", "--model")
    (path,) = (Path(full_shell.environment["HOME"]) / ".cache/aimesh/completion").iterdir()
    if change == "damaged":
        path.write_bytes(b"[")
    else:
        moment = time.time() + (3600 if change == "from the future" else -3600)
        os.utime(path, (moment, moment))
    assert complete(full_shell, "infer", "--model") == ["smollm2", "llama3"]
    assert len(full_shell.mesh.calls) == 2


def test_name_that_a_shell_would_run_is_not_offered(shell: Shell) -> None:
    names = ("$(touch x)", "a;b", "ok", "a b", "`x`", "*", "a\nb", "hf:a/b@c+d")
    shell.mesh.answer(gateway.list_models, ServedModels(tuple(ServedModel(ModelName(name), 1, 1) for name in names)))
    assert complete(shell, "infer", "--model") == ["ok", "hf:a/b@c+d"]


def _remove_profile(shell: Shell) -> None:
    (shell.folder / ".aimesh/profile.toml").unlink()


def _block_cache(shell: Shell) -> None:
    cache = shell.folder / "cache"
    cache.touch()
    shell.environment["XDG_CACHE_HOME"] = str(cache)


def _refuse(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, errors.NotReachable("no gateway answers"))


@pytest.mark.parametrize("fault", [_remove_profile, _block_cache, _refuse])
def test_failures_are_silent(full_shell: Shell, fault: Callable[[Shell], None], capfd: pytest.CaptureFixture[str]) -> None:
    fault(full_shell)
    assert complete(full_shell, "infer", "--model") == []
    assert capfd.readouterr() == ("", "")


def test_silent_mesh_is_left_after_the_deadline(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_completion, "_DEADLINE_SECONDS", 0.01)
    left: list[str] = []

    @asynccontextmanager
    async def connect(_profile: Profile) -> AsyncIterator[CliConnection]:
        try:
            await asyncio.Event().wait()
            raise AssertionError
            yield
        finally:
            left.append("closed")

    here = CliContext(shell.environment, shell.folder, connect)
    found = ShellComplete(main.aicli, {"obj": here}, "aicli", "_AICLI_COMPLETE").get_completions(["infer", "--model"], "")
    assert (found, left) == ([], ["closed"])


def test_shell_gets_values_from_the_program(shell: Shell) -> None:
    """Called as bash does, without a mesh, it prints nothing, not even to stderr."""
    variables = {**shell.environment, "PATH": os.environ["PATH"], "_AICLI_COMPLETE": "bash_complete", "AIMESH_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'aicli'; from cli.main import main; main()"]
    for words, expected in (("aicli infer --model ", "\n"), ("aicli infer --mod", "plain,--model\n")):
        words_of = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        ended = subprocess.run(
            command,
            env={**variables, **words_of},
            cwd=Path(main.__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (ended.stdout, ended.stderr) == (expected, "")
