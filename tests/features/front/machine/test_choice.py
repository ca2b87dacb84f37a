"""What a person reads and answers about the servers of a machine."""

import pytest

from features.front.machine import choice
from features.front.rules import sharing
from features.front.rules.local_servers import LocalModel, LocalServer, SharedServer
from shared import errors
from shared.types import Ability

CHAT = LocalModel(name="qwen3:8b", context_tokens=40960, abilities=(Ability.TOOLS,), quantization="Q4_K_M", size_bytes=5_200_000_000)
VECTORS = LocalModel(name="bge-m3:latest", only_embeds=True)
MADE = LocalModel(name="mine:latest", is_made_there=True)
CLOUD = LocalModel(name="gpt-oss:120b-cloud", provider="ollama-com")
OLLAMA = LocalServer(kind="ollama", title="Ollama", url="http://127.0.0.1:11434", models=(CHAT, VECTORS, MADE, CLOUD))
LLAMA = LocalServer(
    kind="llama_cpp", title="llama-server", url="http://127.0.0.1:8080/v1", models=(LocalModel(name="/srv/ann/models/a.gguf"),)
)
BOTH = (OLLAMA, LLAMA)


def text(*servers: LocalServer) -> str:
    return "\n".join(choice.text_of(servers))


def test_a_person_sees_what_would_be_shared() -> None:
    found = text(*BOTH)
    assert "Ollama runs here, with 1 model to share:\n  qwen3:8b  5.2 GB, Q4_K_M, context 40,960, tools\n" in found
    assert "Not shared unless you name them, because Ollama sends their prompts elsewhere: gpt-oss:120b-cloud" in found
    # Nobody hears where files are on this machine.
    assert "/srv/ann" not in found
    assert "\n  a" in found


def test_those_that_few_would_share_are_asked_one_by_one() -> None:
    assert choice.offered_models(OLLAMA) == [CHAT]
    assert [choice.question_about(model) for model in choice.asked_models(OLLAMA)] == [
        "Also share bge-m3, an embedding model? [y/N] ",
        "Also share mine, which was made on this machine? [y/N] ",
    ]


def test_a_long_list_is_cut() -> None:
    many = LocalServer(kind="ollama", title="Ollama", url="u", models=tuple(LocalModel(name=f"m{number}") for number in range(300)))
    assert len(text(many).splitlines()) == 2 + sharing.MAX_SHOWN
    assert "… and 288 more" in text(many)


def test_hostile_names_stay_on_their_line() -> None:
    evil = LocalServer(kind="ollama", title="Ollama", url="u", models=(LocalModel(name="a\n\x1b[2Jb\u202ec" + "d" * 500),))
    (_, line) = text(evil).splitlines()
    assert line.startswith("  a??[2Jb?cd")
    assert len(line) < 110


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (
            LocalServer(kind="vllm", title="vLLM", url="u", needs_key=True),
            "it asks for a key: aicli worker --share vllm --server-key-file vllm=FILE",
        ),
        (LocalServer(kind="vllm", title="vLLM", url="u", trouble="vLLM is not ready (status 503)"), "but vLLM is not ready (status 503)."),
    ],
)
def test_a_server_without_models_says_why(server: LocalServer, words: str) -> None:
    assert words in text(server)


def test_a_server_that_is_open_to_others_comes_with_the_mend() -> None:
    found = text(LocalServer(kind="ollama", title="Ollama", url="u", models=(CHAT,), is_open_to_others=True))
    assert "answers everybody in your network, without a key. Start it with OLLAMA_HOST=127.0.0.1." in found


def test_words_choose_servers_and_models() -> None:
    assert choice.of_words(["all"], BOTH) == [
        SharedServer(kind="ollama", url=OLLAMA.url, models=("qwen3:8b",)),
        SharedServer(kind="llama_cpp", url=LLAMA.url, models=("/srv/ann/models/a.gguf",)),
    ]
    # By name, also what is never shared by itself.
    assert choice.of_words(["ollama/gpt-oss:120b-cloud", "ollama/mine:latest"], BOTH) == [
        SharedServer(kind="ollama", url=OLLAMA.url, models=("gpt-oss:120b-cloud", "mine:latest"))
    ]
    assert choice.of_words(["llama_cpp/a"], BOTH) == [SharedServer(kind="llama_cpp", url=LLAMA.url, models=("/srv/ann/models/a.gguf",))]


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("vllm", "there is no such server on this machine", "servers that were found: ollama, llama_cpp"),
        ("ollama/gone", "Ollama has no such model", "its models: qwen3:8b"),
        ("", "there is no such server", "found"),
    ],
)
def test_wrong_words_are_refused(word: str, message: str, hint: str) -> None:
    with pytest.raises(errors.BadRequest, match=message) as refused:
        choice.of_words([word], BOTH)
    assert hint in refused.value.hint


def test_choices_add_up() -> None:
    before = [SharedServer(kind="ollama", url=OLLAMA.url, models=("a",))]
    more = [SharedServer(kind="ollama", url=OLLAMA.url, models=("b", "a"))]
    (found,) = choice.merged(before, more)
    assert found.models == ("a", "b")


BEFORE = [
    SharedServer(kind="ollama", url="http://127.0.0.1:11434", models=("qwen3:8b", "llama3.2:latest")),
    SharedServer(kind="vllm", url="http://127.0.0.1:8000/v1", models=("Qwen/Qwen3-8B",)),
]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["all"], {}),
        (["ollama"], {"vllm": ("Qwen/Qwen3-8B",)}),
        (["ollama/llama3.2", "vllm/Qwen/Qwen3-8B"], {"ollama": ("qwen3:8b",)}),
        (["ollama/llama3.2", "ollama/qwen3:8b"], {"vllm": ("Qwen/Qwen3-8B",)}),
    ],
)
def test_what_is_unshared_is_named_as_what_is_shared(words: list[str], left: dict[str, tuple[str, ...]]) -> None:
    assert {server.kind: server.models for server in choice.without(BEFORE, words)} == left


@pytest.mark.parametrize("word", ["sglang", "ollama/gone", "vllm/qwen3:8b"])
def test_only_what_is_shared_can_be_unshared(word: str) -> None:
    with pytest.raises(errors.BadRequest, match=f"--unshare {word}: that is not shared") as refused:
        choice.without(BEFORE, [word])
    assert refused.value.hint == "what is: ollama/qwen3:8b, ollama/llama3.2, vllm/Qwen/Qwen3-8B"
