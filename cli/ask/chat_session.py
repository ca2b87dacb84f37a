"""The session of `aicli chat`: reads a line, runs its command or streams the answer, and keeps the conversation."""

import asyncio
import base64
import random
import sys
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import click
from msgspec.structs import replace

from cli import interrupts
from cli.ask import answer_summary, chat_commands, infer
from cli.ask.answer_view import AnswerView
from cli.ask.chat_commands import ChatCommand
from cli.ask.chat_files import ChatFile
from cli.ask.chat_input import ChatInput
from cli.ask.conversation import UNSET, ChatConversation
from cli.connection import CliConnection
from cli.output import printing
from cli.output.stdout_writer import StdoutWriter
from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceResult, ProcessInferenceRequest, ServedModel
from shared.api.generation import MAX_PROMPT_BYTES
from shared.resumable_stream import StreamRequest
from shared.types import Ability

#: As `aicli infer`: a worker may be loading its model, and long answers take time; Ctrl-C stops them.
_DEADLINE_SECONDS = 600
#: xterm takes about 75 kB in one sequence.
_MAX_COPIED_BYTES = 48 * 1024
_LISTED = 20


class ChatSession:
    def __init__(self, connection: CliConnection, file: ChatFile, *, shows_thoughts: bool) -> None:
        self._connection = connection
        self._shows_thoughts = shows_thoughts
        self._folder = file.folder
        self._file = file
        self._models: tuple[ServedModel, ...] = ()
        #: Of the next message, by their names.
        self._images: dict[str, bytes] = {}
        self._writer = StdoutWriter(sys.stdout)
        self._input = ChatInput(file.folder.path.parent / "chat-history", self._completions)

    async def run(self) -> None:
        """Return when the user leaves. Raises AimeshError if there is no gateway."""
        await self._greet()
        while True:
            # Ctrl-C never ends the chat, not even if it arrives between an answer and the next prompt.
            with suppress(interrupts.PartInterrupted), interrupts.part():
                if not await self._take_line():
                    return

    async def _take_line(self) -> bool:
        """Read a line and do what it says. Return False if the user leaves."""
        try:
            # Bytes that are not UTF-8 become lone surrogates, which cannot be sent.
            text = (await self._input.read()).strip().encode(errors="replace").decode()
        except EOFError:
            return False
        except KeyboardInterrupt:
            return True
        try:
            action = chat_commands.parse(text)
            if action == ChatCommand("quit"):
                return False
            if isinstance(action, ChatCommand):
                await self._obey(action)
            elif action:
                question = self._conversation.with_question(action, tuple(self._images.values()))
                self._images = {}
                await self._ask(question)
        except errors.AimeshError as error:
            self._show_error(error)
        return True

    @property
    def _conversation(self) -> ChatConversation:
        return self._file.conversation

    async def _greet(self) -> None:
        why_none = await self._fetch_models()
        model = self._find_model()
        if model is not None:
            self._note(f"{model.name}, {model.context_tokens} tokens of context. /help lists the commands, Ctrl-D leaves.")
        elif self._models:
            self._note(f"No worker serves {self._conversation.model}. /model lists the models.")
        else:
            self._note(f"No models available: {why_none or 'start a worker with aicli worker'}")
        if self._conversation.turns:
            self._show_resumed()

    async def _fetch_models(self) -> str:
        served = await self._connection.call(gateway.list_models, gateway.ListModels())
        self._models = tuple(model for model in served.models if not model.only_embeds)
        return served.why_none

    def _find_model(self, name: str = "") -> ServedModel | None:
        name = name or self._conversation.model or ""
        if not name:
            return self._models[0] if self._models else None
        return next((model for model in self._models if name == model.name or name in model.aliases), None)

    async def _ask(self, conversation: ChatConversation, *, fresh: bool = False) -> None:
        """Stream the answer to the last question. What arrived before Ctrl-C or an error is kept."""
        self._keep(conversation)
        view = AnswerView(self._writer, shows_thoughts=self._shows_thoughts)
        try:
            try:
                result = await self._stream(
                    ProcessInferenceRequest(conversation.request(), idempotency_key=str(uuid4()), fresh=fresh), view
                )
            finally:
                await view.finish()
                if view.text:
                    self._keep(conversation.with_answer(view.text, view.thoughts))
        except asyncio.CancelledError:
            self._note("Stopped. /retry answers again.\n")
            raise
        except errors.ContextExceeded as error:
            model = self._find_model()
            size = f" of {model.context_tokens} tokens" if model else ""
            hint = "/new starts a new one; /model chooses a model with more"
            raise errors.ContextExceeded(f"the conversation no longer fits the model's context{size}", hint=hint) from error
        self._note(answer_summary.summarize(result))
        model = self._find_model(result.model)
        self._note(answer_summary.describe_limit(result, model.context_tokens if model else 0))
        click.echo()

    async def _stream(self, request: ProcessInferenceRequest, view: AnswerView) -> InferenceResult:
        try:
            async with asyncio.TaskGroup() as tasks:
                painter = tasks.create_task(view.paint_changes())
                result = await self._relay(request, view)
                painter.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return result

    async def _relay(self, request: ProcessInferenceRequest, view: AnswerView) -> InferenceResult:
        def lost(began: bool, error: errors.AimeshError) -> None:
            view.show_note("Connection lost. Resuming …" if began else f"{error.message}. Retrying …")

        stream = StreamRequest(self._connection, random.Random())  # noqa: S311 - spreads load
        async with stream.ask(request, seconds=_DEADLINE_SECONDS, lost=lost) as answer:
            async for chunk in answer:
                if chunk.reasoning:
                    view.think(chunk.reasoning)
                if chunk.text:
                    view.add(chunk.text)
                elif not chunk.reasoning:
                    view.show_note(chunk.waiting)
                if len(view.text) + len(view.thoughts) > MAX_PROMPT_BYTES:
                    raise errors.TooLarge(f"the answer is longer than {MAX_PROMPT_BYTES // 1024} KiB")
            return answer.end

    def _keep(self, conversation: ChatConversation) -> None:
        """Save the conversation. On a full disk, the chat continues without."""
        try:
            if other := self._file.write(conversation):
                self._note(f"Another chat changed this conversation; this one continues as {other}.")
        except errors.BadSettings as error:
            self._show_error(error)

    async def _obey(self, command: ChatCommand) -> None:
        match command.name:
            case "model":
                await self._choose_model(command.argument)
            case "system":
                self._set_system(command.argument)
            case "set":
                self._set(command.argument)
            case "image":
                self._attach(command.argument)
            case "retry":
                await self._ask(self._conversation.without_last_answer(), fresh=True)
            case "new":
                self._file = self._folder.new(replace(self._conversation, turns=()))
                self._note("New conversation.")
            case "save":
                self._file.rename(command.argument)
                self._note(f"Saved as {command.argument}. To continue it later: aicli chat --load {command.argument}")
            case "load":
                self._load(command.argument)
            case "copy":
                await self._copy()
            case _:
                click.echo("\n".join(chat_commands.help_lines()))

    async def _choose_model(self, name: str) -> None:
        with suppress(errors.AimeshError):  # the gateway also checks the model of each request
            await self._fetch_models()
        if not name:
            for model in self._models:
                names = ", ".join((model.name, *model.aliases))
                click.echo(printing.printable(f"{'*' if model == self._find_model() else ' '} {names}  {model.context_tokens} tokens"))
            return
        if self._models and self._find_model(name) is None:
            raise errors.BadRequest(f"no worker serves {name!r}", hint=f"models: {printing.names(model.name for model in self._models)}")
        self._file.conversation = replace(self._conversation, model=name)
        self._note(f"Model: {name}")

    def _set_system(self, text: str) -> None:
        if text:
            self._file.conversation = replace(self._conversation, system=None if text == UNSET else text)
        self._note(f"System prompt: {self._conversation.system or 'none'}")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if value:
            self._file.conversation = replace(self._conversation, settings=self._conversation.settings.with_setting(name, value.strip()))
        chosen = self._conversation.settings.chosen()
        shown = (f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in chosen.items())
        self._note(", ".join(shown) or "All parameters have their defaults.")

    def _attach(self, name: str) -> None:
        model = self._find_model()
        if name == UNSET:
            self._images = {}
        elif name and model is not None and Ability.IMAGES not in model.abilities:
            raise errors.BadRequest(f"{model.name} doesn't support images", hint="choose another model with /model")
        elif name:
            if not Path(name).expanduser().is_file():  # a pipe may never end
                raise errors.BadRequest(f"there is no file {name}")
            images = infer.read_images([name], [data for other, data in self._images.items() if other != name])
            self._images[name] = images[-1]
        self._note(f"Images of the next message: {', '.join(self._images) or 'none'}")

    def _load(self, name: str) -> None:
        if name:
            self._file = self._folder.load(name)
            self._show_resumed()
            return
        for found in self._folder.names()[:_LISTED]:
            with suppress(errors.AimeshError):  # damaged, or deleted meanwhile
                turns = self._folder.load(found).conversation.turns
                question = turns[0].question.split("\n")[0][:50] if turns else ""
                click.echo(printing.printable(f"{found}  {printing.counted(len(turns), 'message')}  {question}"))

    async def _copy(self) -> None:
        answer = self._conversation.last_answer.encode()
        if not answer:
            raise errors.BadRequest("there is no answer to copy yet")
        if len(answer) > _MAX_COPIED_BYTES:
            raise errors.TooLarge(f"the answer is longer than {_MAX_COPIED_BYTES // 1024} KiB, which terminals don't copy")
        # OSC 52 of xterm, which works over SSH too.
        await self._writer.write(f"\x1b]52;c;{base64.b64encode(answer).decode()}\x07")
        self._note("Copied, if your terminal allows it (OSC 52).")

    def _completions(self) -> dict[str, list[str]]:
        models = [name for model in self._models for name in (model.name, *model.aliases)]
        return {"model": models, "load": self._folder.names(), "set": list(self._conversation.settings.__struct_fields__)}

    def _show_resumed(self) -> None:
        turns = self._conversation.turns
        self._note(f"Continuing {self._file.name} with {printing.counted(len(turns), 'message')}. The last one:")
        click.echo(printing.printable(f"> {turns[-1].question}\n{turns[-1].answer}".rstrip()) if turns else "")

    def _note(self, text: str) -> None:
        if text:
            click.echo(printing.styled(printing.printable(text), "bright_black", sys.stdout))

    def _show_error(self, error: errors.AimeshError) -> None:
        printing.show_error(errors.code_of(error), error.message, error.hint, as_json=False)
