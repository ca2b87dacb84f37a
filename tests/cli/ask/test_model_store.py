"""`aicli models pull`, `add`, `show`, `remove` and `prune`, run as the real program."""

import hashlib
import json
from pathlib import Path

import pytest

from cli.ask import local_store
from cli.cli_context import CliContext
from cli.output.exit_codes import ExitCode
from shared import errors
from shared.api import gateway
from shared.api.gateway import PulledPlace, PulledPlaces, PullOnWorkers, WorkerPull
from shared.api.inference import PulledModel, PullProgress
from shared.types import ModelName, NodeId
from tests import gguf_files
from tests.cli.fake_mesh import Shell
from tests.gguf_files import ProjectorShape
from tests.services.inference.models import ranged_server


def test_model_is_pulled_shown_and_removed(shell: Shell, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    with ranged_server.serving(ranged_server.model_bytes(2 * 2**20)) as server:
        pulled = shell("models", "pull", server.url, *store)
        assert pulled.exit_code == 0, pulled.stderr
        assert pulled.stdout.startswith("some-model is stored (2.0 MiB, sha256 ")
        url = f"{server.url}#sha256={server.digest}"
        assert shell("models", "pull", url, *store).stdout.startswith("some-model is up to date.")
        (shown,) = json.loads(shell("models", "show", "--json", *store).stdout)
        assert (shown["name"], shown["digest"], shown["size"]) == ("some-model", server.digest, 2 * 2**20)
    assert shell("models", "remove", "some-model", *store).stdout == "Removed some-model: 2.0 MiB freed.\n"
    assert shell("models", "prune", *store).stdout == "0.0 MiB freed.\n"
    gone = shell("models", "show", "some-model", *store)
    assert (gone.exit_code, gone.stdout) == (ExitCode.FAILED, "")
    assert "no model 'some-model' is in the store" in gone.stderr


def test_file_is_added(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(ranged_server.model_bytes(2000))
    store = ("--store", str(tmp_path / "store"))
    assert shell("models", "add", str(file), "--name", "org/mine:q8", *store).stdout.startswith("org/mine:q8 is stored")
    assert "org/mine:q8" in shell("models", "show", *store).stdout
    refused = shell("models", "add", str(Path(__file__)), *store)
    assert refused.exit_code == ExitCode.USAGE
    assert "not a usable model" in refused.stderr


@pytest.mark.nightly("long")
def test_file_is_added_with_the_projector_beside_it(shell: Shell, tmp_path: Path) -> None:
    file, beside, other = tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf", tmp_path / "images.gguf"
    file.write_bytes(ranged_server.model_bytes(2000))
    for projector in (beside, other):
        gguf_files.write_projector(projector, ProjectorShape(kind="mlp", width=32), seed=len(projector.name))
    store = ("--store", str(tmp_path / "store"))
    for options, wanted in (((), beside), (("--projector", str(other)), other), (("--projector", "none"), None)):
        (added,) = json.loads(shell("models", "add", str(file), *options, "--json", *store).stdout)
        assert added["projector"] == ("" if wanted is None else hashlib.sha256(wanted.read_bytes()).hexdigest())
    refused = shell("models", "pull", "hf:a/b", "--projector", "none", "--node", "U")
    assert "--projector are for this machine only" in refused.stderr


def test_plain_http_is_refused_with_a_code(shell: Shell, tmp_path: Path) -> None:
    refused = shell("models", "pull", "http://example.org/x.gguf", "--json", "--store", str(tmp_path))
    assert json.loads(refused.stderr)["error"]["code"] == "bad_request"
    assert refused.exit_code == ExitCode.USAGE


def test_administrator_pulls_on_other_workers_with_progress(shell: Shell) -> None:
    first, second = NodeId("UAAAAAAAAAAAAA"), NodeId("UBBBBBBBBBBBBB")
    pulled = PulledPlace(first, PulledModel(ModelName("qwen"), "ab" * 32, 2 * 2**30))
    failed = PulledPlace(second, detail="the disk is too full")
    items = [
        WorkerPull(first, PullProgress("downloading", 2**20, 2**30, 2.5 * 2**20)),
        WorkerPull(second, PullProgress("waiting", 0)),
        WorkerPull(first, PullProgress("downloading", 2**21, 2**30)),
    ]
    shell.mesh.stream_answer(gateway.pull_model, items, PulledPlaces((pulled, failed)))
    order = ("models", "pull", "hf:org/qwen:Q8_0", "--label", "room=3", "--label", "x=a.b")
    done = shell(*order, "--name", "qwen")
    assert done.stderr == "UAAAAAAAA… downloading: 1.0 MiB of 1.0 GiB, 0 %, 2.5 MiB/s\nUBBBBBBBB… waiting: 0.0 MiB\n"
    assert done.stdout == "UAAAAAAAA… qwen is stored (2.0 GiB, sha256 abababababab…).\nUBBBBBBBB… failed: the disk is too full\n"
    assert done.exit_code == 1
    assert shell.mesh.calls[0].request == PullOnWorkers("hf:org/qwen:Q8_0", None, {"room": "3", "x": "a.b"}, ModelName("qwen"))
    shell.mesh.stream_answer(gateway.pull_model, [], PulledPlaces((pulled,)))
    assert json.loads(shell(*order, "--node", "UAAA", "--json").stdout)[0]["pulled"]["model"] == "qwen"


def test_refused_pull_on_another_worker_is_an_error(shell: Shell) -> None:
    async def refuse() -> None:
        raise errors.NotAllowed("ada is no administrator")

    shell.mesh.stream_answer(gateway.pull_model, [], PulledPlaces(()), refuse)
    refused = shell("models", "pull", "ollama:tiny", "--node", "UAAA")
    assert "ada is no administrator" in refused.stderr
    assert refused.exit_code not in (0, ExitCode.INTERRUPTED)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--node", "U", "--token-file", "x"), "--token-file, --store and --projector are for this machine only"),
        (("--label", "a=b", "--store", "x"), "--token-file, --store and --projector are for this machine only"),
        (("--label", "room"), "'room=' is not KEY=VALUE"),
    ],
)
def test_options_that_do_not_fit_other_workers_are_refused(shell: Shell, options: tuple[str, ...], why: str) -> None:
    refused = shell("models", "pull", "ollama:tiny", *options)
    assert why in refused.stderr
    assert refused.exit_code == ExitCode.USAGE
    assert shell.mesh.calls == []


def test_sources_and_secrets_come_from_the_environment_and_the_stack(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "AIMESH_HOME": str(tmp_path / "stack"), "MODEL_STORE": "here"}
    (tmp_path / "stack/nats").mkdir(parents=True)
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "stack/stack.env").write_text(f"HF_ENDPOINT=https://mirror.example\nHF_TOKEN_FILE={tmp_path}/token\n")
    _, quota, sources = local_store.find_store(CliContext({**home, "MODEL_MIRRORS": "ghcr.io=https://m.example"}, tmp_path), None)
    assert (quota, sources.hub_url, sources.hub_token) == ("", "https://mirror.example", "secret")
    assert sources.mirrors == {"ghcr.io": "https://m.example"}


def test_store_is_the_one_of_the_worker_on_this_machine(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "AIMESH_HOME": str(tmp_path / "stack")}

    def found(**environment: str) -> str:
        return local_store.find_store(CliContext({**home, **environment}, tmp_path), None)[0]

    with pytest.raises(errors.BadSettings, match="no worker on this machine"):
        found()
    joined = tmp_path / ".local/state/aimesh/worker"
    joined.mkdir(parents=True)
    (joined / "node.mesh").touch()
    assert found() == str(joined / "models")
    (tmp_path / "stack/nats").mkdir(parents=True)
    assert found() == str(tmp_path / "stack/models")
    (tmp_path / "stack/stack.env").write_text("MODEL_STORE=/big/models\n")
    assert found() == "/big/models"
    assert found(NODE_KEY_FILE="/keys/worker.nk") == "/keys/models"
    assert found(NODE_KEY_FILE="/keys/worker.nk", MESH_STATE_FILE="/state/worker.mesh") == "/state/models"
    assert found(MODEL_STORE="here") == str(tmp_path / "here")
