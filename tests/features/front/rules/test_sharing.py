"""What is new on a machine: told to its owner with names, and to the mesh without."""

import msgspec
import pytest

from features.front.rules import sharing
from features.front.rules.local_servers import LocalModel, LocalServer, SharedServer
from features.front.rules.sharing import ServersFile

CHAT = LocalModel(name="qwen3:8b")
VECTORS = LocalModel(name="bge-m3:latest", only_embeds=True)
CLOUD = LocalModel(name="gpt-oss:120b-cloud", provider="ollama-com")
OLLAMA = LocalServer(kind="ollama", title="Ollama", url="http://127.0.0.1:11434", models=(CHAT, VECTORS, CLOUD))
STUDIO = LocalServer(kind="lm_studio", title="LM Studio", url="http://127.0.0.1:1234/v1", models=(LocalModel(name="a"),))
LOCKED = LocalServer(kind="vllm", title="vLLM", url="http://127.0.0.1:8000/v1", needs_key=True)
#: Its owner shared one model, and saw none of the others.
SHARED = ServersFile(
    servers=(SharedServer(kind="ollama", url=OLLAMA.url, models=("old",)),), seen={"ollama": ("old", "left out by its owner")}
)


def told(servers: tuple[LocalServer, ...], kept: ServersFile) -> tuple[list[str], str]:
    new = sharing.find_new(servers, kept)
    return list(sharing.describe_new(new, kept)), sharing.summarize_new(new, kept, "aicli worker status")


def test_a_server_and_a_model_that_appear_later_are_told() -> None:
    lines, summary = told((OLLAMA, STUDIO, LOCKED), SHARED)
    assert lines == [
        "Ollama has new models, not shared yet: qwen3:8b, bge-m3. To share: stop the worker, then aicli worker --share ollama/NAME",
        "LM Studio runs here and isn't shared, with 1 model. To share: stop the worker, then aicli worker --share lm_studio",
        "vLLM runs here and asks for a key. To share: stop the worker, then aicli worker --share vllm --server-key-file vllm=FILE",
    ]
    # The mesh hears no name of a model that nobody shared.
    assert summary == "Not shared yet: 2 models of Ollama, LM Studio, vLLM. See aicli worker status there"


def test_what_its_owner_has_seen_or_declined_is_not_told_again() -> None:
    seen = msgspec.structs.replace(SHARED, declined=("lm_studio", "vllm"), seen={"ollama": ("old", "qwen3:8b", "bge-m3:latest")})
    assert told((OLLAMA, STUDIO, LOCKED), seen) == ([], "")
    more = msgspec.structs.replace(STUDIO, models=(*STUDIO.models, LocalModel(name="b")))
    assert told((more,), seen) == ([], ""), "a declined server's new models are as little wanted"


@pytest.mark.parametrize("letter", ["\n", "\x1b", "\u202e"])
def test_a_line_stays_a_line_of_bounded_length(letter: str) -> None:
    many = msgspec.structs.replace(OLLAMA, models=tuple(LocalModel(name=f"{number}{letter}" + "x" * 500) for number in range(300)))
    (line,), _ = told((many,), SHARED)
    assert line.isprintable()
    assert "and 288 more" in line
    # See ``node.Line``.
    assert len(line) < 2000
