"""What model lists say about images."""

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from services.inference import upstreams
from services.inference.backends.remote import openai
from services.inference.upstreams import Secrets, Upstream
from shared.api.generation import ChatMessage, ImagePart
from tests.services.inference import asked
from tests.services.inference.backends.remote.test_openai import CHAT, asking
from tests.services.inference.standins import Reader


@pytest.mark.parametrize(
    ("told", "listed", "abilities"),
    [
        pytest.param(None, {}, (), id="nothing"),
        pytest.param(None, {"abilities": ["tools", "images"]}, ("images",), id="another mesh"),
        pytest.param(None, {"capabilities": {"completion_chat": True, "vision": True}}, ("images",), id="Mistral"),
        pytest.param(None, {"architecture": {"modality": "x", "input_modalities": ["text", "image"]}}, ("images",), id="OpenRouter"),
        pytest.param(None, {"capabilities": {"vision": False}, "architecture": {"input_modalities": ["text"]}}, (), id="it cannot"),
        pytest.param(None, {"abilities": 3, "capabilities": ["vision"], "architecture": "image"}, (), id="other forms"),
        pytest.param(True, {}, ("images",), id="its owner says so"),
        pytest.param(False, {"abilities": ["images"]}, (), id="its owner says no"),
    ],
)
def test_the_list_or_the_owner_says_whether_a_model_sees_images(
    told: bool | None, listed: dict[str, Any], abilities: tuple[str, ...]
) -> None:
    content = json.dumps({"data": [{"id": "m", **listed}]}).encode()
    [model] = openai._read_models(Upstream(name="x", url="http://x/v1", images=told), content)
    assert model.abilities == abilities


def test_a_table_has_the_word_of_its_owner() -> None:
    text = '[a]\nurl = "http://10.0.0.5/v1"\nimages = true\n[b]\nurl = "http://10.0.0.6/v1"\n'
    assert [upstream.images for upstream in upstreams.parse(text, Secrets({}, True, str))] == [True, None]


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
