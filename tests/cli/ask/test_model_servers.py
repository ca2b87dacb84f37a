"""`aicli models servers`, `add-server` and `remove-server`."""

import json
from pathlib import Path

import msgspec
import pytest

from cli.ask import model_servers
from shared import errors
from shared.api import configuration, servers
from shared.api.configuration import AppliedConfig, ApplyConfig, ConfigChange, ConfigDocument
from shared.api.servers import ServerRow, ServerRows
from shared.config_documents import ConfigKind, ServerDocument, ServerKind
from shared.types import ModelName
from tests.cli.fake_mesh import Shell

URL = "http://10.0.0.5:8000/v1"
KEY = "sk-very-secret-0123456789"
CHANGED = AppliedConfig(2, (ConfigChange(ConfigKind.SERVER, "rack", None, "url: …\n", 1),))


def sent(**body: object) -> ConfigDocument:
    return ConfigDocument(ConfigKind.SERVER, "rack", msgspec.json.encode(ServerDocument(url=URL, **body)).decode())  # type: ignore[arg-type]


def test_the_copy_is_current() -> None:
    assert tuple(ServerKind) == model_servers.KINDS


@pytest.mark.parametrize("from_file", [True, False])
def test_a_server_is_added_with_a_key_from_a_file(shell: Shell, tmp_path: Path, from_file: bool) -> None:
    shell.mesh.answer(configuration.apply_config, CHANGED)
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    source, stdin = (str(file), "") if from_file else ("-", f"{KEY}\n")
    done = shell(
        "models",
        "add-server",
        "rack",
        URL,
        "--kind",
        "vllm",
        "--key-file",
        source,
        "--model",
        "a",
        "--model",
        "b",
        "--context",
        "65536",
        "--tools",
        stdin=stdin,
    )
    assert done.exit_code == 0
    assert done.stderr == "Added rack. Workers serve its models within seconds.\n"
    wanted = ApplyConfig(documents=(sent(kind=ServerKind.VLLM, key=KEY, models=("a", "b"), context=65536, tools=True),), only_new=True)
    assert [call.request for call in shell.mesh.calls] == [wanted]
    assert KEY not in done.output


def test_a_server_is_replaced(shell: Shell) -> None:
    shell.mesh.answer(configuration.apply_config, msgspec.structs.replace(CHANGED, warnings=("nobody may use it",)))
    done = shell("models", "add-server", "rack", URL, "--replace")
    assert done.stderr == "warning: nobody may use it\nAdded rack. Workers serve its models within seconds.\n"
    assert [call.request for call in shell.mesh.calls] == [ApplyConfig(documents=(sent(),))]


def test_a_refusal_is_shown_and_an_unreadable_key_is_not_sent(shell: Shell, tmp_path: Path) -> None:
    shell.mesh.answer(configuration.apply_config, errors.AlreadyExists("there is a server 'rack' already"))
    assert "there is a server 'rack' already" in shell("models", "add-server", "rack", URL).stderr
    shell.mesh.calls.clear()
    assert "can't be read" in shell("models", "add-server", "rack", URL, "--key-file", str(tmp_path / "none")).stderr
    (tmp_path / "key").write_bytes(b"\xff")
    assert "it is not ASCII text" in shell("models", "add-server", "rack", URL, "--key-file", str(tmp_path / "key")).stderr
    assert shell.mesh.calls == []


def test_a_server_is_removed(shell: Shell) -> None:
    shell.mesh.answer(configuration.apply_config, CHANGED)
    assert shell("models", "remove-server", "rack").stderr == "Removed rack. Workers stop serving its models within seconds.\n"
    assert [call.request for call in shell.mesh.calls] == [ApplyConfig(documents=(ConfigDocument(ConfigKind.SERVER, "rack", None),))]
    shell.mesh.answer(configuration.apply_config, AppliedConfig(2, ()))
    assert "there is no server 'rack'" in shell("models", "remove-server", "rack").stderr


def test_servers_are_listed(shell: Shell) -> None:
    row = ServerRow("rack", URL, ServerKind.VLLM, True, (ModelName("qwen3"),), 1, "")
    shell.mesh.answer(servers.list_servers, ServerRows((row, msgspec.structs.replace(row, name="attic", trouble="away", workers=0))))
    shown = shell("models", "servers").stdout
    assert [line.split()[:1] for line in shown.splitlines()] == [["SERVER"], ["rack"], ["attic"]]
    assert "Down" in shown
    assert [each["name"] for each in json.loads(shell("models", "servers", "--json").stdout)] == ["rack", "attic"]
