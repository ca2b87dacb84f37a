"""A model's single chat process, and fill-in-the-middle prompts for models with and without tokens for them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.inference.chat import model_chat
from services.inference.chat.chat_messages import OpenTemplate, TemplateCapabilities
from services.inference.chat.model_chat import ModelChat
from services.inference.chat.prompt_plan import ReasoningDefaults
from services.inference.engine import llama_model
from services.inference.engine.engine_messages import LoadCommand, Loaded
from services.inference.jobs import check_prompt
from shared import errors
from shared.api.generation import SUFFIX_ROLE, ChatMessage, Sampling
from shared.types import ModelName
from tests import gguf_files
from tests.gguf_files import LlamaShape

SHAPE = LlamaShape(layers=1, embedding=64, heads=2, kv_heads=2, feed_forward=64, vocabulary=300, context=256)
GAP = (ChatMessage("user", "def add(a, b):"), ChatMessage(SUFFIX_ROLE, "print(add(1, 2))"))


def job(messages: tuple[ChatMessage, ...] = GAP) -> Any:
    return check_prompt(ModelName("m"), messages, Sampling(raw=True), context_tokens=256, draw_seed=lambda: 1)


@pytest.mark.parametrize("refused", [False, True])
async def test_replicas_that_are_loaded_at_the_same_time_start_one_process(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    started: list[OpenTemplate] = []

    class Client:
        def __init__(self, template: OpenTemplate) -> None:
            started.append(template)

        async def open(self) -> TemplateCapabilities:
            await asyncio.sleep(0)
            if refused:
                raise errors.BadRequest("line 1")
            return TemplateCapabilities(supports_reasoning_effort=False, shown=("<call>",))

    monkeypatch.setattr(model_chat, "ChatClient", Client)
    chat, loaded = ModelChat(), Loaded("tiny", 256, gpu="", chat_template="{{ x }}", processor="")
    found = await asyncio.gather(chat.open(loaded), chat.open(loaded), return_exceptions=True)
    assert len(started) == 1
    assert [str(one) for one in found] == (["line 1"] * 2 if refused else ["('<call>',)"] * 2)


async def test_a_gap_is_marked_by_the_models_own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = gguf_files._llama_pairs
    kinds = {f"tokenizer.ggml.fim_{kind}_token_id": gguf_files.single("u32", 270 + at) for at, kind in enumerate(("pre", "suf", "mid"))}
    monkeypatch.setattr(gguf_files, "_llama_pairs", lambda *given: pairs(*given) | kinds)
    gguf_files.write_llama(tmp_path / "code.gguf", SHAPE, weights="q8_0", seed=1)
    with llama_model.opened(LoadCommand(str(tmp_path / "code.gguf"), 1, 128, 1, 0), lambda _: None) as model:
        loaded = model.describe()
        before, behind, fill = loaded.infill
        chat = ModelChat()
        chat._infill = loaded.infill
        prompt, rendered = await chat.prepare(job(), ReasoningDefaults())
        assert prompt.text == f"{before}def add(a, b):{behind}print(add(1, 2)){fill}"
        assert rendered.parser == ""
        assert len({before, behind, fill}) == 3


async def test_a_model_without_such_tokens_refuses_a_gap_and_continues_texts() -> None:
    chat = ModelChat()
    with pytest.raises(errors.BadRequest, match="suffix: this model cannot fill gaps"):
        await chat.prepare(job(), ReasoningDefaults())
    prompt, _ = await chat.prepare(job(GAP[:1]), ReasoningDefaults())
    assert prompt.text == "def add(a, b):"


@pytest.mark.parametrize("messages", [(*GAP, GAP[1]), (GAP[0], GAP[0])])
def test_raw_takes_a_text_and_what_is_behind_its_gap(messages: tuple[ChatMessage, ...]) -> None:
    with pytest.raises(errors.BadRequest, match="raw allows one message"):
        job(messages)


def test_a_chat_has_no_gap() -> None:
    with pytest.raises(errors.BadRequest, match=r"messages\[1\]\.role must be one of"):
        check_prompt(ModelName("m"), GAP, Sampling(), context_tokens=256, draw_seed=lambda: 1)
