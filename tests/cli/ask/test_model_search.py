"""`aicli models search` and `aicli models catalog refresh`."""

import json

from shared import errors
from shared.api import model_search as api
from shared.api.inference import Fit
from shared.api.model_search import FoundModel, FoundModels, MachineFit, RefreshedCatalog, SearchModels
from shared.config_documents import CatalogDocument
from shared.types import NodeId
from tests.cli.fake_mesh import Shell

QWEN = CatalogDocument(
    source="hf:Qwen/Qwen3-8B-GGUF:Q4_K_M", parameters=8 * 10**9, quantizations=("Q4_K_M",), license="Apache-2.0", tools=True
)
A, B, C = (NodeId(letter * 12) for letter in "ABC")
FITS = (
    MachineFit(worker=A, fit=Fit.YES, detail="32768 tokens of context", on_gpu=True),
    MachineFit(worker=B, fit=Fit.PARTLY, detail="9 of 36 layers on the processor"),
    MachineFit(worker=C, fit=Fit.NO, detail="it needs 5.1 GiB, and models may use 4.0 GiB"),
)
FOUND = FoundModels(
    (
        FoundModel(name="qwen3:8b", origin="catalog", model=QWEN, size=5_037_000_000, room=(1, 2, 3), fits=FITS),
        FoundModel(name="mine", origin="mesh", is_served=True),
    )
)


def test_a_search_shows_where_models_fit(shell: Shell) -> None:
    shell.mesh.answer(api.search_models, FOUND)
    result = shell("models", "search", "qwen3", "tools")
    header, first, second = result.stdout.splitlines()
    assert header.split("  ")[0] == "MODEL"
    assert first.split() == [
        "qwen3:8b",
        "5.0",
        "GB,",
        "not",
        "checked",
        "Q4_K_M",
        "Apache-2.0",
        "yes",
        "AAAAAAAAA,",
        "BBBBBBBBB",
        "(partly)",
    ]
    assert second.split() == ["mine", "–", "–", "–", "–", "served"]
    assert shell.mesh.calls[0].request == SearchModels("qwen3 tools", fits=True)


def test_wide_and_json_have_every_machine_with_its_reason(shell: Shell) -> None:
    shell.mesh.answer(api.search_models, FOUND)
    wide = shell("models", "search", "-o", "wide").stdout
    assert "1/2/3" in wide
    assert "CCCCCCCCC…: no (it needs 5.1 GiB, and models may use 4.0 GiB)" in wide
    (row, _) = json.loads(shell("models", "search", "--json").stdout)
    assert [(fit["worker"], fit["fit"]) for fit in row["fits"]] == [(A, "yes"), (B, "partly"), (C, "no")]
    assert row["model"]["source"] == QWEN.source
    assert (row["model"]["size"], row["model"]["sha256"]) == (None, None)


def test_what_could_not_be_searched_is_said_beside_what_was_found(shell: Shell) -> None:
    shell.mesh.answer(api.search_models, FoundModels((), ("Hugging Face does not answer",)))
    result = shell("models", "search", "nothing", "--offline")
    assert result.exit_code == 0
    assert result.stderr == "No models found. To see the whole catalog: aicli models search\nHugging Face does not answer\n"
    assert shell.mesh.calls[0].request == SearchModels("nothing", fits=True, hub=False)


def test_a_refresh_says_what_changed_and_what_could_not_be_checked(shell: Shell) -> None:
    shell.mesh.answer(api.refresh_catalog, RefreshedCatalog(("qwen3:8b",), ("gone: huggingface.co has no such model for everyone",)))
    result = shell("models", "catalog", "refresh")
    assert result.stdout == "Changed: qwen3:8b\n"
    assert result.stderr == "Not checked: gone: huggingface.co has no such model for everyone\n"
    shell.mesh.answer(api.refresh_catalog, errors.Unavailable("nothing could be checked; is there a network?"))
    assert "is there a network" in shell("models", "catalog", "refresh").stderr
