"""What model lists say about a model: its context, and whether it sees images, calls tools and thinks."""

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from features.remote_servers.worker import openai, upstreams
from features.remote_servers.worker.upstreams import Secrets, Upstream
from shared.api.generation import ChatMessage, ImagePart
from tests.features.remote_servers.worker.test_openai import CHAT, asking
from tests.services.inference import asked
from tests.services.inference.standins import Reader


@pytest.mark.parametrize(
    ("told", "listed", "context", "abilities"),
    [
        pytest.param({}, {}, 0, (), id="nothing"),
        pytest.param(
            *({}, {"abilities": ["images", "tools", "infill"], "max_model_len": 9, "context_length": 9}, 9, ("tools", "images")),
            id="another mesh",
        ),
        pytest.param(
            {},
            {"capabilities": {"completion_chat": True, "vision": True, "function_calling": True}, "max_context_length": 131_072},
            *(131_072, ("tools", "images")),
            id="Mistral",
        ),
        pytest.param(
            {},
            {
                "architecture": {"modality": "x", "input_modalities": ["text", "image"]},
                "supported_parameters": ["tools", "reasoning", "top_k"],
                "context_length": 200_000,
            },
            *(200_000, ("tools", "reasoning", "images")),
            id="OpenRouter",
        ),
        pytest.param({}, {"context_window": 131_072}, 131_072, (), id="Groq"),
        pytest.param({}, {"capabilities": {"vision": False}, "architecture": {"input_modalities": ["text"]}}, 0, (), id="it cannot"),
        pytest.param(
            *({}, {"abilities": 3, "capabilities": ["vision"], "architecture": "image", "supported_parameters": [["tools"]]}, 0, ()),
            id="other forms",
        ),
        pytest.param({}, {"max_model_len": "many", "context_length": -1, "context_window": 10**30}, 0, (), id="no number"),
        pytest.param({}, {"max_model_len": None, "context_length": 4096}, 4096, (), id="only the second"),
        pytest.param(
            *({"images": True, "tools": True, "reasoning": True, "context": 65_536}, {}, 65_536, ("tools", "reasoning", "images")),
            id="its owner says so",
        ),
        pytest.param(
            *({"images": False, "tools": False, "context": 8192}, {"abilities": ["images", "tools"], "max_model_len": 9}, 8192, ()),
            id="its owner says no",
        ),
    ],
)
def test_list_or_the_owner_says_what_a_model_can_do(
    told: dict[str, Any], listed: dict[str, Any], context: int, abilities: tuple[str, ...]
) -> None:
    content = json.dumps({"data": [{"id": "m", **listed}]}).encode()
    [model] = openai._read_models(Upstream(name="x", url="http://x/v1", **told), content)
    assert (model.context_tokens, model.abilities) == (context, abilities)


def test_a_table_has_the_word_of_its_owner() -> None:
    text = '[a]\nurl = "http://10.0.0.5/v1"\nimages = true\ntools = false\nreasoning = true\ncontext = 131072\n[b]\nurl = "http://10.0.0.6/v1"\n'
    told = [(one.images, one.tools, one.reasoning, one.context) for one in upstreams.parse(text, Secrets({}, True, str))]
    assert told == [(True, False, True, 131_072), (None, None, None, None)]


async def test_twelve_mebibytes_of_an_image_reach_the_server_and_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    run = asyncio.Handle._run  # type: ignore[attr-defined]  # what the event loop calls

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        turns.append(time.thread_time() - began)

    image = b"\x89PNG" + bytes(12 * 1024 * 1024)
    async with asking(CHAT, images=True) as (server, backend):
        assert backend.models()[0].abilities == ("images",)
        question = asked.job((ChatMessage("user", "see", images=(ImagePart(image, 3),)),), model="gpt-x")
        monkeypatch.setattr(server, "asked", sizes := _Sizes())
        monkeypatch.setattr(asyncio.Handle, "_run", timed)
        end = await backend.generate(question, Reader())
        monkeypatch.undo()
    assert end.usage.prompt_tokens == 7
    assert sizes == [len(base64.b64encode(image))]
    assert max(turns) < 0.1, "with the stand-in's own work"


class _Sizes(list[int]):
    """Records the size of the image in each request."""

    def append(self, body: Any) -> None:
        url = body["messages"][0]["content"][1]["image_url"]["url"]
        super().append(len(url.removeprefix("data:image/png;base64,")))
