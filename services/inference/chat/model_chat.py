"""The chat process of a loaded model, and what a worker wants from it. All replicas of the model share it."""

import asyncio
from collections.abc import Callable
from functools import partial

from services.inference.backend_interface import Sink
from services.inference.chat import prompt_plan
from services.inference.chat.chat_client import ChatClient
from services.inference.chat.chat_messages import DecodeImage, OpenTemplate, RenderedPrompt, TemplateCapabilities
from services.inference.chat.prompt_plan import ReasoningDefaults
from services.inference.chat.separated_answers import SeparatedAnswers
from services.inference.engine.engine_messages import Loaded, PreparedPrompt
from services.inference.images.prompt_images import DecodedImage
from services.inference.jobs import GenerationJob
from shared import errors
from shared.api.generation import LONG_SIDE, LOW_LONG_SIDE, ChatMessage, ImageDetail, ImagePart
from shared.api.inference import RenderChat
from shared.telemetry import logs
from shared.types import Ability

log = logs.get()

#: All special tokens of a vocabulary together; the largest has 200 KB.
MAX_SPECIAL_CHARACTERS = 1024 * 1024


class ModelChat:
    def __init__(self) -> None:
        self._client: ChatClient | None = None
        self._can: TemplateCapabilities | None = None
        #: Held by the first of the replicas that finds the model loaded.
        self._opening = asyncio.Lock()
        #: See ``Loaded.infill``.
        self._infill: tuple[str, ...] = ()
        #: What the template and the vocabulary are for, also after the model was unloaded.
        self.abilities: frozenset[Ability] = frozenset()

    async def open(self, loaded: Loaded) -> tuple[str, ...]:
        """Start the process with the template of a loaded model, and return the special tokens that belong to answers. Does nothing the
        second time. Raises BadRequest for a template that isn't usable, and Unavailable if no process starts."""
        async with self._opening:
            if self._client is None:
                if sum(map(len, loaded.special)) > MAX_SPECIAL_CHARACTERS:
                    raise errors.BadRequest("the vocabulary's special tokens are too long")
                self._infill = loaded.infill
                self._client = ChatClient(OpenTemplate(loaded.chat_template, loaded.bos, loaded.eos, loaded.special))
            if self._can is None:
                self._can = await self._client.open()
                thinks, fills = self._can.supports_thinking, bool(loaded.infill)
                self.abilities = frozenset(({Ability.REASONING} if thinks else set()) | ({Ability.INFILL} if fills else set()))
                if self._can.unconfined:
                    log.warning("chat_unconfined", reason=self._can.unconfined)
            return self._can.shown

    async def prepare(self, job: GenerationJob, defaults: ReasoningDefaults) -> tuple[PreparedPrompt, RenderedPrompt]:
        """Render a job's prompt, and find its grammar. Raises BadRequest, Overloaded, and Unavailable if no process runs."""
        if job.requested.raw:
            # There is only one speaker, who may use special tokens.
            rendered = RenderedPrompt(self._raw_text(job.messages))
            return prompt_plan.prepared(job, rendered), rendered
        client, can = self._opened()
        request = prompt_plan.request_of(job, can, defaults)
        rendered = await client.render(request)
        budget = prompt_plan.budget_of(job.requested, defaults, thinking=request.thinking)
        prepare = partial(prompt_plan.prepared, job, rendered, budget)
        # The grammar of many tools takes half a second of processor time.
        return (await asyncio.to_thread(prepare) if job.requested.tools else prepare()), rendered

    def _raw_text(self, messages: tuple[ChatMessage, ...]) -> str:
        if len(messages) == 1:
            return messages[0].content
        if not self._infill:
            raise errors.BadRequest(
                "suffix: this model cannot fill gaps", hint="leave it out, or use a model for code, such as Qwen2.5-Coder"
            )
        before, behind, fill = self._infill
        return f"{before}{messages[0].content}{behind}{messages[1].content}{fill}"

    async def decode(self, image: ImagePart, number: int) -> DecodedImage:
        """Return the pixels that a model looks at. Raises as ``prepare``; BadRequest names the image by its ``number``."""
        side = LOW_LONG_SIDE if image.detail is ImageDetail.LOW else LONG_SIDE
        try:
            return await self._opened()[0].decode(DecodeImage(image.data, side))
        except errors.BadRequest as refused:
            raise errors.BadRequest(f"image {number} {refused.message}", hint="send a JPEG, PNG, WebP or GIF") from refused

    async def render(self, request: RenderChat, *, marked: bool) -> str:
        """Render a chat, with marks for the engine or without. Raises as ``prepare``."""
        client, can = self._opened()
        if any(message.images for message in request.messages):
            raise errors.BadRequest("messages: the tokens of images are only known to a model that looks at them", hint="leave them out")
        return (await client.render(prompt_plan.conversion_of(request, can, marked=marked))).prompt

    def answers(self, job: GenerationJob, rendered: RenderedPrompt, sink: Sink, failed: Callable[[], None]) -> SeparatedAnswers:
        """Return the sink for the answers of the engine. ``failed`` is called for each that the parser refuses."""
        return SeparatedAnswers(self._opened()[0] if rendered.parser else None, rendered, job, sink, failed)

    async def close(self) -> None:
        """End the process. Safe to call twice."""
        client, self._client, self._can = self._client, None, None
        if client is not None:
            await client.close()

    def _opened(self) -> tuple[ChatClient, TemplateCapabilities]:
        if self._client is None or self._can is None:
            raise errors.Unavailable("the model is not loaded", hint="try again in a moment", retry_after_seconds=1.0)
        return self._client, self._can
