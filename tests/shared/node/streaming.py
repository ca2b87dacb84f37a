"""A gateway whose answers a test chooses by the prompt, and which records how its calls ended."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any, ClassVar
from uuid import UUID

from shared import errors, rpc
from shared.api import gateway
from shared.api.gateway import InferenceChunk, InferenceResult
from shared.api.generation import ToolCall, Usage
from shared.types import FinishReason, ModelName, RequestId, Role
from tests.testnet import IdleService

REQUEST_ID = RequestId(UUID(int=7))
#: Characters in each chunk of "large", and the maximum number of chunks.
LARGE, MAX = 50_000, 1000
#: Between the chunks of "endless".
PAUSE_SECONDS = 0.001
RESULT = InferenceResult(REQUEST_ID, ModelName("m"), FinishReason.STOP, Usage(5, 2), 10, 1)


class Streaming(IdleService):
    role: ClassVar[Role] = Role.GATEWAY

    def __init__(self) -> None:
        self.calls: list[rpc.StreamCall[InferenceChunk]] = []
        #: Chunks sent by all calls.
        self.sent = 0
        self.running = 0
        #: Resumes "paused" after its first chunk.
        self.may_go_on = asyncio.Event()
        #: The codes of failed calls; "cancelled" for a cancellation.
        self.failed: list[str] = []

    @rpc.serves(gateway.list_models)
    async def list_models(self, request: gateway.ListModels, call: rpc.RpcCall) -> gateway.ServedModels:
        return gateway.ServedModels(())

    @rpc.serves(gateway.process_inference_request)
    async def process(self, request: gateway.ProcessInferenceRequest, stream: rpc.StreamCall[InferenceChunk]) -> InferenceResult:
        self.calls.append(stream)
        self.running += 1
        try:
            for number, chunk in enumerate(ANSWERS[request.request.prompt or ""], 1):
                if chunk is None:
                    await asyncio.Event().wait()
                elif chunk == PAUSE:
                    await self.may_go_on.wait()
                elif isinstance(chunk, Exception):
                    raise chunk
                else:
                    await stream.send(InferenceChunk(sequence=number, **chunk))
                    self.sent += 1
                    await asyncio.sleep(PAUSE_SECONDS if request.request.prompt == "endless" else 0)
        except asyncio.CancelledError:
            self.failed.append("cancelled")
            raise
        except errors.AimeshError as error:
            self.failed.append(error.code)
            raise
        finally:
            self.running -= 1
        return RESULT


PAUSE = "pause"
#: Prompt -> its answer: fields of chunks, None to wait forever, or an error.
ANSWERS: dict[str, Iterable[Any]] = {
    "endless": itertools.repeat({"text": "x"}),
    "two": [{"text": "a"}, {"text": "x", "answer": 1}, {"text": "b"}],
    "tools": [{"text": "", "tool_calls": (ToolCall(str(number), "f", "{}"),)} for number in range(2)],
    "large": [{"text": "x" * LARGE}] * MAX,
    "escaped": [{"text": "\x01" * LARGE}] * 4,
    "letters": [{"text": "x"}] * 5_000,
    "hang": [{"text": "a"}, None],
    "silent": [None],
    "paused": [{"text": "a"}, PAUSE, {"text": "b"}],
    "fail": [{"text": "a"}, errors.WorkerLost("the worker is gone", hint="ask again")],
    "hi": [{"text": "Hel"}, {"text": "lo"}],
}
