"""A worker with a tiny vision model: from its announcement to an answer over real links."""

import hashlib
from pathlib import Path

import pytest

from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import inference
from shared.api.generation import ChatMessage, ImagePart
from shared.context import new_request_id
from shared.node.member import member
from shared.node.settings import NodeSettings
from shared.types import ModelName, Role
from tests.services.inference.images import vision_models
from tests.services.inference.images.vision_models import encoded, picture
from tests.testnet import MESH, testnet, until

pytestmark = vision_models.needs_library
NAME = ModelName("sees")


def prompt(data: bytes) -> inference.ProcessPrompt:
    image = ImagePart(data, 5, digest=hashlib.sha256(data).digest())
    messages = (ChatMessage("user", "What is this?", images=(image,)),)
    config = inference.ModelConfig(model=NAME, temperature=0, max_tokens=6, ignore_eos=True, top_logprobs=0)
    return inference.ProcessPrompt(messages, config, new_request_id())


async def test_worker_announces_images_and_answers(tmp_path: Path) -> None:
    vision_models.write(tmp_path, "gemma3")
    async with testnet() as net:
        settings = InferenceSettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("worker", Role.WORKER), backend="llama",
            models={NAME: str(tmp_path / "model.gguf")}, slots=2, context_tokens=512, threads=1, gpu_layers=0,
        )  # fmt: skip
        await net.start(InferenceService, settings)
        gateway_settings = NodeSettings(mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY))
        async with member(gateway_settings, Role.GATEWAY) as gateway:
            await until(lambda: any(worker.announcement.models for worker in gateway.directory.usable(Role.WORKER)))
            (worker,) = gateway.directory.usable(Role.WORKER)
            assert [(offer.name, offer.sees_images) for offer in worker.announcement.models] == [(NAME, True)]
            said = []
            for data in (encoded(picture(1)), encoded(picture(1), "WEBP", lossless=True), encoded(picture(2))):
                async with gateway.rpc.stream(inference.process_prompt, prompt(data), to=worker.node) as answer:
                    said.append([token async for chunk in answer for token in chunk.logprobs])
                assert answer.accepted is not None
                assert answer.accepted.prompt_tokens == answer.end.usage.prompt_tokens > 40
            assert said[0] == said[1] != said[2]
            with pytest.raises(errors.BadRequest, match="image 1 is damaged"):
                async with gateway.rpc.stream(inference.process_prompt, prompt(encoded(picture(1))[:100]), to=worker.node) as answer:
                    _ = [chunk async for chunk in answer]
