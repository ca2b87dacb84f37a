"""Embeddings, the list of models, and what a mesh doesn't do at a user's wish."""

from typing import Any

import ollama

from checks.ollama.client import MODEL, SCRIPTED, checks, client, refusal

#: Feature -> why, and the checks that say so.
REFUSED = {
    "models": (
        "an administrator chooses the models of a mesh",
        ["create()", "copy()", "delete()", "push()", "create_blob()", "pull() of another model"],
    ),
    "systemone()": ("no model of ours has it", ["systemone()"]),
}


@checks("embed.model", "embed.input", "embed.truncate", "embed.options", "embed.keep_alive", "embed answer.embeddings")
def _() -> None:
    answer = client.embed(MODEL, ["one", "two"], truncate=True, options={"num_ctx": 512}, keep_alive="1m")
    assert len(answer.embeddings) == 2
    assert abs(sum(number**2 for number in answer.embeddings[0]) - 1) < 0.01
    assert (answer.prompt_eval_count or 0) > 0
    assert len(client.embed(f"{MODEL}:latest", "one").embeddings) == 1


@checks("embed.dimensions")
def _() -> None:
    (vector,) = client.embed(MODEL, "one", dimensions=16).embeddings
    assert len(vector) == 16


@checks("embeddings()")
def _() -> None:
    (vector,) = client.embed(MODEL, "one").embeddings
    assert client.embeddings(MODEL, "one").embedding == vector
    assert client.embeddings(MODEL, "").embedding == []


@checks("list()", "list.models", "model.model", "model.modified_at", "model.digest", "model.size", "model.details")
def _() -> None:
    found = {model.model: model for model in client.list().models}
    assert {f"{MODEL}:latest", f"{SCRIPTED}:latest"} <= found.keys()
    model = found[f"{SCRIPTED}:latest"]
    assert len(model.digest or "") == 64
    assert model.modified_at
    assert model.size == 0
    assert (model.details or ollama._types.ModelDetails()).format == "gguf"


@checks("ps()", "running.name", "running.expires_at", "running.size_vram", "running.context_length")
def _() -> None:
    found = {model.name: model for model in client.ps().models}
    model = found[f"{SCRIPTED}:latest"]
    assert model.context_length == 200_000
    assert model.expires_at
    assert model.size_vram == 0


@checks("show()", "show.capabilities", "show.modelinfo", "show.details", "show.modified_at")
def _() -> None:
    shown = client.show(SCRIPTED)
    assert shown.capabilities == ["completion", "tools", "vision", "thinking"]
    assert (shown.modelinfo or {})["aimesh.context_length"] == 200_000
    assert shown.details
    assert shown.modified_at
    assert refusal(lambda: client.show("no-such-model")).status_code == 404


@checks("show.template", "show.modelfile", "show.license", "show.parameters")
def _() -> None:
    shown = client.show(SCRIPTED)
    assert (shown.template, shown.modelfile, shown.license, shown.parameters) == ("", "", "", "")


@checks("pull()")
def _() -> None:
    # Programs pull a model before they use it.
    assert client.pull(SCRIPTED).status == "success"
    assert [part.status for part in client.pull(f"{SCRIPTED}:latest", stream=True)] == ["success"]


@checks("pull() of another model")
def _() -> None:
    assert "aicli models pull" in refusal(lambda: client.pull("no-such-model")).error


def _is_missing(run: Any) -> None:
    assert refusal(run).status_code == 404


checks.add("create()", lambda: _is_missing(lambda: client.create("mine", from_=SCRIPTED)))
checks.add("copy()", lambda: _is_missing(lambda: client.copy(SCRIPTED, "mine")))
checks.add("delete()", lambda: _is_missing(lambda: client.delete(SCRIPTED)))
checks.add("push()", lambda: _is_missing(lambda: client.push(SCRIPTED)))
checks.add("create_blob()", lambda: _is_missing(lambda: client.create_blob(__file__)))
checks.add("systemone()", lambda: _is_missing(lambda: client._request_raw("POST", "/api/systemone", json={"model": SCRIPTED})))
