"""`aicli models load` and `unload`; test_listings covers the list."""

import json

import msgspec

from cli.output.exit_codes import ExitCode
from shared import errors
from shared.api import gateway
from shared.api.gateway import ModelPlace, ModelPlaces, ServedModels
from shared.types import LoadPurpose, ModelName, NodeId
from tests.cli.fake_mesh import Shell

NODE = NodeId("UABCDEFGHIJKLMNOP")
LOADED = ModelPlace(NODE, ModelName("qwen"), "ready", "", pinned=True, memory_bytes=9)


def test_load(shell: Shell) -> None:
    shell.mesh.answer(gateway.load_model, ModelPlaces((LOADED,)))
    assert shell("models", "load", "qwen").stdout == "qwen is loaded on UABCDEFGH…, pinned\n"
    assert json.loads(shell("models", "load", "qwen", "--worker", "UABC", "--pin", "--json").stdout) == [
        {"worker": NODE, "model": "qwen", "state": "ready", "detail": "", "pinned": True, "memory_bytes": 9, "context_tokens": 0}
    ]
    shell("models", "load", "qwen", "--unpin")
    shell.mesh.answer(gateway.load_model, ModelPlaces((msgspec.structs.replace(LOADED, context_tokens=65_536),)))
    assert shell("models", "load", "qwen", "--for", "agents").stdout == "qwen is loaded on UABCDEFGH…, 65536 tokens of context, pinned\n"
    assert [call.request for call in shell.mesh.calls] == [
        gateway.LoadOnWorker(ModelName("qwen")),
        gateway.LoadOnWorker(ModelName("qwen"), NodeId("UABC"), True),
        gateway.LoadOnWorker(ModelName("qwen"), None, False),
        gateway.LoadOnWorker(ModelName("qwen"), None, None, LoadPurpose.AGENTS),
    ]
    assert "'chats', 'agents'" in shell("models", "load", "qwen", "--for", "agent").stderr


def test_unload_reports_each_worker_and_fails_if_one_refused(shell: Shell) -> None:
    gone = ModelPlace(NODE, ModelName("qwen"), "unloaded", "on disk")
    busy = ModelPlace(NodeId("UZZZZZZZZZZZ"), ModelName("qwen"), "", "qwen is in use: 2 requests")
    shell.mesh.answer(gateway.unload_model, ModelPlaces((gone,)))
    assert shell("models", "unload", "qwen").exit_code == 0
    shell.mesh.answer(gateway.unload_model, ModelPlaces((gone, busy)))
    result = shell("models", "unload", "qwen")
    assert result.stdout == ("qwen is unloaded on UABCDEFGH…: on disk\nqwen was not changed on UZZZZZZZZ…: qwen is in use: 2 requests\n")
    assert result.exit_code == 1


def test_refusal_is_an_error(shell: Shell) -> None:
    shell.mesh.answer(gateway.load_model, errors.NotAllowed("ada is no administrator"))
    result = shell("models", "load", "qwen")
    assert "ada is no administrator" in result.stderr
    assert result.exit_code not in (0, ExitCode.INTERRUPTED)


def test_models_lists_by_default(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, ServedModels(()))
    assert shell("models", "list", "--json").stdout == shell("models", "--json").stdout == "[]\n"


def test_models_says_what_workers_lack(shell: Shell) -> None:
    warning = "UABCDEFG… a library is missing. To build it: make up"
    shell.mesh.answer(gateway.list_models, ServedModels((gateway.ServedModel(ModelName("qwen"), 1, 2048),), warning=warning))
    result = shell("models")
    assert result.stderr == f"{warning}\n"
    assert warning not in result.stdout
    assert json.loads(shell("models", "--json").stdout)[0]["name"] == "qwen"
