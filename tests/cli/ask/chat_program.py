"""`aicli chat` with a fake mesh, as a program that the tests start in a terminal: python -m tests.cli.ask.chat_program FOLDER ARGUMENTS.
`run` as the first argument starts `aicli run` instead.

The model repeats the question. `think …` thinks first, `slow …` never ends, `pause …` ends when the test writes to the
FIFO `go`, `full` exceeds the context, `lost` breaks and is resumed, `down` has no worker.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

from cli import main
from cli.cli_context import CliContext
from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceChunk, InferenceResult, ProcessInferenceRequest, ServedModel, ServedModels
from shared.api.generation import Usage
from shared.api.method import Nothing
from shared.types import FinishReason, MicroCredits, ModelName, RequestId
from tests.cli.fake_mesh import FakeMesh

RESULT = InferenceResult(
    request_id=RequestId(UUID(int=7)),
    model=ModelName("echo"),
    finish_reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=4, completion_tokens=3),
    response_time_ms=30,
    first_token_ms=10,
    cost_micro=MicroCredits(800),
)
MODELS = (
    ServedModel(ModelName("echo"), 1, 2048, ("llama3",), abilities=("images",)),
    ServedModel(ModelName("blind"), 1, 2048),
    ServedModel(ModelName("vectors"), 1, 512, only_embeds=True),
)


async def answer(request: ProcessInferenceRequest) -> AsyncIterator[InferenceChunk]:
    question = request.request.messages[-1].content
    if question == "full":
        raise errors.ContextExceeded("the prompt has 3000 tokens")
    if question == "down":
        raise errors.UnknownModel("no worker serves echo", hint="start one")
    if question == "lost" and request.rest is None:
        yield InferenceChunk("first ", sequence=1)
        raise errors.LinkLost("the link fell silent")
    if question == "lost":
        yield InferenceChunk("second", sequence=2)
        return
    if question.startswith("think"):
        yield InferenceChunk("", reasoning="\nfirst of all\nth")
        yield InferenceChunk("", reasoning="en")
    for number, word in enumerate(question.split(" "), 1):
        yield InferenceChunk(f"{word} ", sequence=number)
    if question.startswith("pause"):
        await asyncio.to_thread((Path(sys.argv[1]) / "go").read_text)
    if question.startswith("slow"):
        await asyncio.Event().wait()


def run() -> None:
    folder = Path(sys.argv[1])
    mesh = FakeMesh()
    mesh.stream_script(gateway.process_inference_request, answer, RESULT)
    mesh.answer(gateway.list_models, ServedModels(MODELS))
    mesh.answer(gateway.cancel_inference, Nothing())
    try:
        given = sys.argv[2:]
        main.aicli.main(given if given[:1] == ["run"] else ["chat", *given], obj=CliContext(os.environ, folder, mesh.open))
    finally:
        messages = [
            [message.content for message in call.request.request.messages]
            for call in mesh.calls
            if isinstance(call.request, ProcessInferenceRequest)
        ]
        asked = [call.request.request for call in mesh.calls if isinstance(call.request, ProcessInferenceRequest)]
        thoughts = [[message.reasoning for message in one.messages if message.reasoning] for one in asked]
        efforts = [one.reasoning_effort for one in asked]
        images = [[len(image.data) for message in one.messages for image in message.images] for one in asked]
        seen = {
            "calls": [call.method for call in mesh.calls],
            "left_early": mesh.left_early,
            "messages": messages,
            "thoughts": thoughts,
            "efforts": efforts,
            "images": images,
        }
        (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    run()
