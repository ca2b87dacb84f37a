"""`aicli worker`: the environment of the worker's process."""

import errno
import os
from pathlib import Path
from typing import NoReturn, get_args, get_type_hints

import pytest

from cli.machines import join, worker
from cli.machines.join import Folder
from services.inference.settings import InferenceSettings
from shared import config, errors
from shared.identity import enrollment_list, node_keys
from shared.node.membership_file import MembershipFile
from shared.types import MeshName, NodeId, Role
from stack import initialization
from stack import stack_home as homes
from tests.cli.fake_mesh import Shell


@pytest.fixture
def stack(tmp_path: Path) -> homes.StackHome:
    """A stack whose user has changed some settings; nothing runs."""
    home = homes.locate({"AIMESH_HOME": str(tmp_path / "home")})
    settings = {"MESH_NAME": "lab", "NATS_PORT": "14222", "MODELS": "m=/models/m.gguf", "LOG_LEVEL": "debug"}
    initialization.ensure(home, settings, tmp_path)
    return home


def test_worker_is_its_own_node(stack: homes.StackHome) -> None:
    outside = {"AIMESH_HOME": str(stack.root), "PATH": "/bin"}
    first = worker.plan_environment(outside, {})
    second = worker.plan_environment(outside, {})
    ids = {node_keys.load(Path(each["NODE_KEY_FILE"])).id for each in (first, second)}
    assert len(ids) == 2
    enrolled = {each.node: each.role for each in enrollment_list.read(stack.enrollment).nodes}
    assert [enrolled[NodeId(node)] for node in ids] == [Role.WORKER, Role.WORKER]
    assert first["PATH"] == "/bin"


def test_name_lock_passes_to_the_worker(stack: homes.StackHome) -> None:
    first = worker.plan_environment({"AIMESH_HOME": str(stack.root)}, {})
    assert first["NODE_KEY_FILE"].endswith("local-worker-1.nk")
    (lock,) = descriptors_of(stack.run / "local-worker-1.lock")
    assert os.get_inheritable(lock)
    os.close(lock)  # the worker ends
    again = worker.plan_environment({"AIMESH_HOME": str(stack.root)}, {})
    assert again["NODE_KEY_FILE"] == first["NODE_KEY_FILE"]


def descriptors_of(file: Path) -> list[int]:
    links = Path("/proc/self/fd").iterdir()
    return [int(link.name) for link in links if link.exists() and link.resolve() == file.resolve()]


def test_options_precede_the_environment_which_precedes_the_stack(stack: homes.StackHome) -> None:
    outside = {"AIMESH_HOME": str(stack.root), "LOG_LEVEL": "error", "NATS_URL": "nats://elsewhere:1", "INFERENCE_BACKEND": "ollama"}
    chosen = worker.plan_environment(outside, {"INFERENCE_BACKEND": "echo", "ENGINE_SLOTS": "8"})
    loaded = config.load(InferenceSettings, chosen)
    assert loaded.log_level == "error"
    assert (loaded.mesh, loaded.nats_url) == ("lab", "nats://127.0.0.1:14222")
    assert loaded.models == {"m": "/models/m.gguf"}
    assert (loaded.backend, loaded.slots) == ("echo", 8)


def test_node_key_needs_no_stack(tmp_path: Path) -> None:
    outside = {"NODE_KEY_FILE": "/k.nk", "NATS_URL": "tls://elsewhere:4222", "AIMESH_HOME": str(tmp_path)}
    assert worker.plan_environment(outside, {"MODELS": "a=/b"}) == {**outside, "MODELS": "a=/b"}


def test_a_worker_at_a_terminal_speaks_plain_words(stack: homes.StackHome) -> None:
    outside = {"AIMESH_HOME": str(stack.root)}
    piped, shown = (config.load(InferenceSettings, worker.plan_environment(outside, {}, for_people=told)) for told in (False, True))
    assert (piped.console, piped.log_format) == ("off", "json")
    assert (shown.console, shown.log_format, shown.log_level) == ("plain", "text", "warning")
    debugged = worker.plan_environment({**outside, "LOG_LEVEL": "debug"}, {}, for_people=True)
    assert config.load(InferenceSettings, debugged).log_level == "debug"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings, match=f"the disk of {tmp_path} is full"), worker._explained_full_disk(Folder(tmp_path)):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), worker._explained_full_disk(Folder(tmp_path)):
        raise PermissionError(errno.EACCES, "no")


def test_missing_stack_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings, match="there is no stack") as caught:
        worker.plan_environment({"AIMESH_HOME": str(tmp_path)}, {})
    assert "make up" in caught.value.hint


@pytest.mark.parametrize(
    ("model", "message"),
    [("smollm2", "is not NAME=PATH"), ("=x", "is not NAME=PATH"), ("a=", "is not NAME=PATH"), ("a=nowhere.gguf", "there is no file")],
)
def test_unusable_model(shell: Shell, model: str, message: str) -> None:
    result = shell("worker", "--model", model)
    assert result.exit_code == 2
    assert message in result.stderr


def test_joined_worker_uses_its_folder_and_the_users_display_options() -> None:
    folder = join.Folder(Path("/state"))
    outside = {"NATS_URL": "nats://127.0.0.1:1", "NATS_URL_FILE": "/x", "LOG_LEVEL": "debug", "MODELS_FILE": "/y", "NODE_KEY_FILE": "/z"}
    chosen = worker.joined_environment(outside, {"MODELS": "a=/b"}, folder, MembershipFile(MeshName("lab"), Role.WORKER))
    assert "NATS_URL_FILE" not in chosen
    assert "MODELS_FILE" not in chosen
    loaded = config.load(InferenceSettings, chosen)
    assert (loaded.mesh, loaded.uses_nats, loaded.node_key_file, loaded.state_file) == ("lab", False, folder.key, folder.membership)
    assert (loaded.pause_file, loaded.status_file, loaded.console) == (folder.paused, folder.status, "plain")
    assert (loaded.log_level, loaded.log_format, loaded.models) == ("debug", "text", {"a": "/b"})


@pytest.mark.parametrize(
    ("model", "accepts", "outside", "expected"),
    [
        pytest.param("", None, {}, {}, id="neither"),
        pytest.param("hf:a/b", True, {}, {"MODELS_PULL": "hf:a/b"}, id="a source"),
        pytest.param("/srv/m.gguf", False, {}, {"MODELS": "m=/srv/m.gguf"}, id="a file"),
        pytest.param("hf:a/b", None, {"MODELS": "x=/x"}, {"MODELS": "x=/x"}, id="the owner's own models"),
        pytest.param("hf:a/b", None, {"MODELS_YAML_FILE": "/y"}, {}, id="the owner's own list"),
        pytest.param("", False, {"ALLOW_MODEL_PULLS": "on"}, {"ALLOW_MODEL_PULLS": "on"}, id="the owner's own consent"),
    ],
)
def test_joined_worker_serves_what_its_ticket_names_unless_the_owner_says_otherwise(
    model: str, accepts: bool | None, outside: dict[str, str], expected: dict[str, str]
) -> None:
    kept = MembershipFile(MeshName("lab"), Role.WORKER, model=model, accept_models=accepts)
    chosen = worker.joined_environment(outside, {}, join.Folder(Path("/state")), kept)
    assert {name: chosen[name] for name in ("MODELS", "MODELS_PULL", "ALLOW_MODEL_PULLS") if name in chosen} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--label", "a=b"), "require --join", id="labels without joining"),
        pytest.param(("--join", "x", "--label", "a"), "is not KEY=VALUE", id="half a label"),
        pytest.param(("--models", "nowhere"), "there is no folder", id="no folder"),
        pytest.param(("--models", "."), "no .gguf files in", id="an empty folder"),
        pytest.param(("--state", "nowhere"), "no worker has joined a mesh using", id="a folder that never joined"),
        pytest.param(("--join", "hello"), "a ticket begins with aip_join_", id="no ticket"),
    ],
)
def test_failed_start_says_why(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    result = shell("worker", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_one_name_for_two_models(shell: Shell) -> None:
    for name in ("a.gguf", "b.gguf"):
        (shell.folder / name).touch()
    result = shell("worker", "--models", ".", "--model", "a=b.gguf")
    assert (result.exit_code, "two models are named a" in result.stderr) == (2, True)


def test_backend_choices_match_the_implementation() -> None:
    hint = get_type_hints(InferenceSettings)["backend"]
    assert set(worker.BACKENDS) == set(get_args(hint))


def test_options_are_worker_settings() -> None:
    variables = {setting.variable.name for setting in config.settings_of(InferenceSettings)}
    assert {"INFERENCE_BACKEND", "MODELS", "ENGINE_SLOTS", "INFERENCE_SERVICE_PORT", "NODE_KEY_FILE", "MESH_NAME", "NATS_URL"} <= variables


@pytest.mark.parametrize("file", ["mine.gguf", "smollm2"])
def test_plan_runs_its_program_without_a_mesh(shell: Shell, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    (shell.folder / "mine.gguf").touch()
    started: list[tuple[list[str], str | None]] = []

    def become(_: str, command: list[str], environment: dict[str, str]) -> NoReturn:
        started.append((command[1:], environment.get("ENGINE_SLOTS")))
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    assert shell("worker", "--slots", "3", "--plan", file).exit_code == 0
    model = str(shell.folder / file) if file == "mine.gguf" else file
    assert started == [(["-m", "services.inference.backends.plan_program", model], "3")]


def folder_with(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def test_each_file_is_a_model_named_after_it(tmp_path: Path) -> None:
    folder_with(tmp_path, "qwen3-4b.Q4_K_M.gguf", "phi.GGUF", "readme.md", "mmproj-phi.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert worker.find_models(tmp_path) == {"phi": tmp_path / "phi.GGUF", "qwen3-4b.Q4_K_M": tmp_path / "qwen3-4b.Q4_K_M.gguf"}


def test_split_model_is_one_model_opened_by_its_first_part(tmp_path: Path) -> None:
    folder_with(tmp_path, "big-00001-of-00002.gguf", "big-00002-of-00002.gguf")
    assert worker.find_models(tmp_path) == {"big": tmp_path / "big-00001-of-00002.gguf"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param([], "no .gguf files in", id="none"),
        pytest.param(["notes.txt"], "no .gguf files in", id="none that is a model"),
        pytest.param(["a=b.gguf"], "can't contain =", id="a name that MODELS could not carry"),
        pytest.param(["a,b.gguf"], "can't contain commas", id="a path that MODELS could not carry"),
        pytest.param(["a.gguf", "a.GGUF"], "would both be served as a", id="two of one name"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(errors.BadSettings, match=message):
        worker.find_models(folder_with(tmp_path, *names))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings, match="there is no folder"):
        worker.find_models(tmp_path / "nowhere")
