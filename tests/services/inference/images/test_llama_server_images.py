"""The engine and llama-server produce the same tokens for the same images and model files."""

import asyncio
import base64
from pathlib import Path

import httpx
import msgspec
import pytest
from PIL import Image

from bench import rivals
from services.inference.engine import llama_model
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import KvType, KvTypes
from tests import tiers
from tests.services.inference.images import vision_models
from tests.services.inference.images.vision_models import KINDS, SLOTS, Asked, encoded, picture
from tests.testnet import free_port

SERVER = rivals.programs_folder() / rivals.PROGRAMS[0]
pytestmark = [
    pytest.mark.skipif(not SERVER.exists(), reason="needs llama-server, which `python -m bench.rivals` builds in 10 minutes"),
    vision_models.needs_library,
]
START_SECONDS = 60.0
PROMPTS = (
    ("Look at # and say what it is.", (picture(1),)),
    ("# is before # here, and then there is more text to read. Which is red?", (picture(2), picture(3, 90, 30))),
    ("###end", (picture(4), picture(1), picture(4, 33, 47))),
)


@pytest.mark.parametrize("kind", tiers.by_day(KINDS, "gemma3", "qwen2vl_merger", group="long"))
async def test_tokens_are_those_of_llama_server(kind: str, tmp_path: Path) -> None:
    # Use llama-server's KV types and flash attention.
    load = vision_models.write(tmp_path, kind)
    load = msgspec.structs.replace(load, kv_type=KvTypes(KvType.F16, KvType.F16))
    with llama_model.opened(load, lambda _: None) as model:
        asked = Asked(EngineLoop(model, slots=SLOTS))
        ours = [asked.ask(text, *pictures)[0] for text, pictures in PROMPTS]
    port = free_port()
    words = (SERVER, "--model", load.path, "--mmproj", load.projector, "--host", "127.0.0.1", "--port", port, "-np", 1, "-c", 512, "-t", 1)
    async with (
        rivals.program((*words, "--no-warmup", "-fa", "on", "--no-webui"), port, "/health", START_SECONDS),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        marker = (await client.get("/props")).json()["media_marker"]
        theirs = await asyncio.gather(*(completion(client, marker, text, pictures) for text, pictures in PROMPTS))
    assert ours == theirs


async def completion(client: httpx.AsyncClient, marker: str, text: str, pictures: tuple[Image.Image, ...]) -> list[int]:
    prompt = {
        "prompt_string": text.replace("#", marker),
        "multimodal_data": [base64.b64encode(encoded(one)).decode() for one in pictures],
    }
    asked = {"prompt": prompt, "n_predict": 12, "temperature": 0, "ignore_eos": True, "return_tokens": True, "cache_prompt": False}
    answered = await client.post("/completion", json=asked)
    assert answered.status_code == 200, answered.text
    return list(answered.json()["tokens"])
