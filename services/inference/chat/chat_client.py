"""The worker's side of a chat process: starts it, asks it one request at a time, and starts it again after a crash."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from services.inference import child_process
from services.inference.chat import chat_messages
from services.inference.chat.answer_text import Parsing, SeparatedPiece
from services.inference.chat.chat_messages import ChatRefused, ChatReply, ChatRequest, ParsedAnswer, RenderedPrompt
from services.inference.engine import engine_messages
from services.inference.images.prompt_images import DecodedImage
from shared import errors
from shared.telemetry import logs

log = logs.get()

#: Requests that wait for the process. Each takes milliseconds.
MAX_WAITING = 256
#: For a request's turn and its answer. A request of too much processor time ends the process.
CALL_SECONDS = 20.0
#: For Python, the library and the test of the template.
START_SECONDS = 30.0
_RECEIVE_BYTES = 256 * 1024

#: Followed by the number of the socket and the id of this process.
PROGRAM = (sys.executable, "-P", "-m", "services.inference.chat.chat_process")


#: What says that the process is gone or can't be used any more.
_LOST = (TimeoutError, OSError, EOFError, msgspec.MsgspecError, errors.ProtocolViolation)
_Reply = TypeVar("_Reply", chat_messages.TemplateCapabilities, RenderedPrompt, DecodedImage)


class ChatProcessLost(Exception):
    """The process died or hung in this request, which is not repeated. The next one starts another process."""


@dataclass(slots=True)
class _RunningChat:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    unframer: engine_messages.Unframer = field(default_factory=engine_messages.Unframer)
    #: Replies that have not come yet, in the order of the requests: more than one after a call was canceled.
    owed: int = 0
    #: The reply to OpenTemplate.
    opened: ChatReply | None = None

    async def ask(self, request: ChatRequest, seconds: float) -> ChatReply:
        """Raises one of _LOST."""
        async with asyncio.timeout(seconds):
            body = msgspec.msgpack.encode(request)
            if len(body) > engine_messages.MAX_MESSAGE_BYTES:
                raise errors.BadRequest(f"the prompt has {len(body)} bytes; at most {engine_messages.MAX_MESSAGE_BYTES} are allowed")
            self.writer.write(engine_messages.framed(body))
            self.owed += 1
            while received := await self.reader.read(_RECEIVE_BYTES):
                for body in self.unframer.feed(received):
                    self.owed -= 1
                    if self.owed == 0:
                        return chat_messages.reply_decoder.decode(body)
        raise EOFError("the chat process closed its socket")


class ChatClient:
    """The chat process of one model. Safe to use from many tasks."""

    def __init__(self, template: chat_messages.OpenTemplate, program: tuple[str, ...] = PROGRAM) -> None:
        self._template = template
        self._program = program
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._running: _RunningChat | None = None
        #: Processes that died or hung.
        self.lost = 0

    async def close(self) -> None:
        """End the process. Safe to call twice."""
        async with self._turn:
            await self._end()

    @property
    def pid(self) -> int | None:
        return None if self._running is None else self._running.process.pid

    async def open(self) -> chat_messages.TemplateCapabilities:
        """Start the process, which tests the template. Raises BadRequest with the reason, and Unavailable if none starts."""
        async with self._in_turn():
            try:
                running = await self._ensure_running()
            except errors.Unavailable:
                # llama.cpp may have crashed on the template.
                self._template = msgspec.structs.replace(self._template, by_jinja=True)
                running = await self._ensure_running()
            return _expected(running.opened, chat_messages.TemplateCapabilities)

    async def render(self, request: chat_messages.RenderPrompt) -> RenderedPrompt:
        """Raises BadRequest if the template refuses the messages, or the process was lost; Overloaded; Unavailable if none starts."""
        try:
            return _expected(await self._ask(request), RenderedPrompt)
        except ChatProcessLost as lost:
            raise errors.BadRequest(str(lost), hint="make the request smaller: messages, tools and their schemas") from lost

    async def decode(self, request: chat_messages.DecodeImage) -> DecodedImage:
        """Raises BadRequest, whose text completes "the image …"; Overloaded; Unavailable if no process starts."""
        try:
            reply = await self._ask(request)
        except ChatProcessLost as lost:
            raise errors.BadRequest("crashes its decoder, or needs more than 2 s or 512 MiB") from lost
        if isinstance(reply, ChatRefused):
            raise errors.BadRequest(reply.reason)
        return _expected(reply, DecodedImage)

    async def parse(self, request: chat_messages.ParseAnswer) -> ParsedAnswer | ChatRefused | None:
        """Return None if the process was lost or isn't there: then an answer is text."""
        try:
            reply = await self._ask(request)
        except (ChatProcessLost, errors.Overloaded, errors.Unavailable):
            return None
        return reply if isinstance(reply, ParsedAnswer | ChatRefused) else None

    async def separate(self, parsing: Parsing, parser: str) -> tuple[SeparatedPiece, ...]:
        """Run a step of an `AnswerSeparator` with this process as its parser."""
        try:
            text = next(parsing)
            while True:
                text = parsing.send(await self.parse(chat_messages.ParseAnswer(parser, text)))
        except StopIteration as end:
            return tuple(end.value)

    async def _ask(self, request: ChatRequest) -> ChatReply:
        async with self._in_turn():
            running = await self._ensure_running()
            try:
                return await running.ask(request, CALL_SECONDS)
            except _LOST as error:
                self.lost += 1
                log.warning("chat_process_lost", pid=running.process.pid, request=type(request).__name__, error=repr(error))
                await asyncio.shield(self._end())
                raise ChatProcessLost(
                    "llama.cpp crashed in this request, or needed too much processor time or more than 512 MiB"
                ) from error

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise _overloaded()
        self._waiting += 1
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise _overloaded() from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    async def _ensure_running(self) -> _RunningChat:
        if self._running is not None and self._running.process.returncode is None:
            return self._running
        await self._end()
        opened = False
        try:
            self._running = running = _RunningChat(*await child_process.start(self._program))
            running.opened = await running.ask(self._template, START_SECONDS)
            opened = True
            return running
        except _LOST as error:
            raise errors.Unavailable(f"the process that renders prompts does not start: {error!r}", hint="see the worker's log") from error
        finally:
            if not opened:
                await asyncio.shield(self._end())

    async def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await child_process.end(running.process, running.writer)


def _expected(reply: ChatReply | None, kind: type[_Reply]) -> _Reply:
    if isinstance(reply, ChatRefused):
        raise errors.BadRequest(
            f"the model's chat template: {reply.reason}", hint="check roles and their order, tools and template variables"
        )
    if not isinstance(reply, kind):
        raise errors.ProtocolViolation(f"the chat process answered with {type(reply).__name__}")
    return reply


def _overloaded() -> errors.Overloaded:
    return errors.Overloaded("too many prompts are being rendered on this worker", hint="try again in a moment", retry_after_seconds=1.0)
