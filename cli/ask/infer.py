"""`aicli infer`: send a prompt and stream the answer."""

import os
import random
import select
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypedDict, Unpack
from uuid import uuid4

import click
import msgspec

from cli import options, value_completion
from cli.cli_context import CliContext
from cli.option_values import NumberTakingCommand
from cli.output import print_format, printing
from shared import api, errors
from shared.types import ModelName

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cli.connection import CliConnection
    from cli.output.stdout_writer import StdoutWriter
    from shared.api.gateway import InferenceRequest, InferenceResult, ProcessInferenceRequest
    from shared.api.generation import OutputFormat

#: A worker may be loading its model, and long answers take time; Ctrl-C cancels.
_DEADLINE_SECONDS = 600
#: As the gateway gives it.
_FLEX_SECONDS = 3600
#: Without input for so long, say that it is waited for.
_SLOW_PIPE_SECONDS = 2.0
#: The maximum of msgpack, and far above any valid parameter.
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is shown during the answer."""

    answer: bool
    #: Before the answer, dimmed.
    thoughts: bool
    #: On stderr, as text or, with --json, as objects.
    notes: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    #: Empty if they were shown during the answer.
    text: str
    thoughts: str
    result: "InferenceResult"


class _Parameters(TypedDict):
    """Options that are passed on unchanged; the gateway checks their limits."""

    model: str | None
    system: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    stop: tuple[str, ...]
    seed: int | None
    reasoning_effort: str | None
    output_format: str | None
    flex: bool


model_option = click.option(
    "-m",
    "--model",
    metavar="NAME",
    shell_complete=value_completion.models,
    help="Model to use; see `aicli models`. Default: the gateway's default model.",
)


effort_option = click.option(
    "--reasoning-effort",
    metavar="EFFORT",
    type=click.Choice(("none", "minimal", "low", "medium", "high", "xhigh")),
    help="How long the model thinks before it answers: none, minimal, low, medium, high or xhigh. Default: the model's own.",
)
thoughts_option = click.option("--no-thoughts", is_flag=True, help="Don't show what the model thinks before it answers.")


@click.command(cls=NumberTakingCommand)
@click.argument("words", metavar="PROMPT...", nargs=-1)
@click.option(
    "-f", "--file", "files", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Append a text file. Can be repeated."
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Show the model an image: JPEG, PNG, WebP or GIF. Can be repeated.",
)
@model_option
@click.option("-s", "--system", metavar="TEXT", help="System prompt.")
@options.whole_number("--max-tokens", lambda: api.gateway.InferenceRequest, "max_tokens", help="Maximum number of tokens to generate.")
@options.number(
    "--temperature",
    lambda: api.gateway.InferenceRequest,
    "temperature",
    help="Sampling temperature: 0 always picks the most likely token; higher values vary more.",
)
@options.number(
    "--top-p", lambda: api.gateway.InferenceRequest, "top_p", help="Sample from the most likely tokens whose probabilities add up to this."
)
@options.whole_number(
    "--top-k", lambda: api.gateway.InferenceRequest, "top_k", help="Sample from this many of the most likely tokens; 0 means all."
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. Can be repeated.")
@options.whole_number("--seed", lambda: api.gateway.InferenceRequest, "seed", help="Random seed, for reproducible answers.")
@effort_option
@thoughts_option
@click.option(
    "--format",
    "output_format",
    metavar="json|FILE",
    help="Force the answer's format: any JSON object (json), a JSON schema (FILE.json) or a grammar (FILE.gbnf).",
)
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Repeating a request with the same key returns the same answer and is billed once. Default: a new key each time.",
)
@click.option("--flex", is_flag=True, help="Run behind live requests, at the price of batches; it may wait for 15 minutes.")
@click.option("--no-cache", is_flag=True, help="Don't answer from the gateway's response cache.")
@click.option("--no-resume", is_flag=True, help="Don't resume a broken stream.")
@click.option("--no-stream", is_flag=True, help="Print the answer only when it is complete.")
@print_format.output_options("Print a JSON object: text, reasoning, model, usage, finish_reason, request_id.")
@click.option("-v", "--verbose", is_flag=True, help="Print the model, token counts and speed after the answer (terminals only).")
@click.pass_obj
def infer(
    here: CliContext,
    /,
    words: tuple[str, ...],
    *,
    files: tuple[str, ...],
    images: tuple[str, ...],
    idempotency_key: str | None,
    no_cache: bool,
    no_resume: bool,
    no_stream: bool,
    no_thoughts: bool,
    as_json: bool,
    verbose: bool,
    **parameters: Unpack[_Parameters],
) -> None:
    """Send a prompt to a model and print the answer. Text from a pipe is appended to the prompt.

    \b
    aicli infer Write a haiku about rivers
    git diff | aicli infer Review this change


    The answer streams to stdout; at a terminal, the model's thoughts come before it, dimmed. If the connection breaks, the stream resumes
    where it stopped; aicli retries for up to 30 seconds if no gateway answers. Ctrl-C cancels the request on the worker.
    """
    from shared.api.gateway import ProcessInferenceRequest

    request = _with_images(_request(_prompt(words, files), parameters), images)
    if idempotency_key is not None:
        refuse_bad_text(idempotency_key)
    key = idempotency_key or (None if no_resume else str(uuid4()))
    message = ProcessInferenceRequest(request, idempotency_key=key, fresh=no_cache)
    thoughts = not no_thoughts and sys.stdout.isatty()
    shown = _Shown(answer=not (no_stream or as_json), thoughts=thoughts, notes=not as_json)

    async def work(connection: "CliConnection") -> _Answer:
        return await _stream_answer(connection, message, shown, resume=not no_resume)

    from cli.ask import answer_summary

    answer = here.run(work)
    text, result = answer.text, answer.result
    if as_json:
        _show_object(replace(answer, thoughts="") if no_thoughts else answer)
        return
    if no_stream:
        if thoughts and answer.thoughts:
            click.echo(_dimmed(answer.thoughts.strip("\n")) + "\n")
        click.echo(_for_stdout(text), nl=not text.endswith("\n"))
    if note := answer_summary.describe_credit_limit(result):
        printing.note(note)
    if verbose and sys.stderr.isatty():
        click.echo(printing.styled(printing.printable(answer_summary.summarize(result)), "bright_black", sys.stderr), err=True)


def _prompt(words: tuple[str, ...], files: tuple[str, ...]) -> str:
    """Return the words, the files and what is piped in, in paragraphs. `-` reads stdin in any case."""
    parts = [" ".join(word for word in words if word != "-")]
    for name in files:
        with click.open_file(name, "rb") as file:
            parts.append(read_text(file, name))
    if "-" in words or is_piped(sys.stdin):
        _note_slow_pipe()
        parts.append(read_text(sys.stdin.buffer, "stdin"))
    return "\n\n".join(part for part in parts if part)


def is_piped(stdin: "IO[str]") -> bool:
    """Return whether a program or a file is the input. Input of another kind, such as a service's, may never end."""
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False  # closed
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _note_slow_pipe() -> None:
    """Say why nothing happens if the other program writes nothing; some keep a pipe open that they do not use."""
    with suppress(OSError, ValueError):  # not a file, as in tests, or not on this system
        if not select.select([sys.stdin], [], [], _SLOW_PIPE_SECONDS)[0]:
            printing.note("Waiting for the rest of the prompt on stdin; to leave it out: </dev/null")


def read_text(file: "IO[bytes]", name: str) -> str:
    from shared.api.generation import MAX_PROMPT_BYTES

    # A longer prompt need not be read to its end.
    text = file.read(MAX_PROMPT_BYTES + 1)
    if len(text) > MAX_PROMPT_BYTES:
        raise errors.TooLarge(f"{name} is longer than {MAX_PROMPT_BYTES // 1024} KiB", hint="shorten or split it")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not valid UTF-8 (byte {error.start})") from error


def _request(prompt: str, parameters: _Parameters) -> "InferenceRequest":
    from shared.api.gateway import InferenceRequest
    from shared.api.generation import ReasoningEffort

    if not prompt.strip():
        talk = "; to talk to a model: aicli chat" if sys.stdin.isatty() else ""
        raise click.UsageError(f"the prompt is empty{talk}")
    model, effort = parameters["model"], parameters["reasoning_effort"]
    for text in (prompt, model or "", parameters["system"] or "", *parameters["stop"]):
        refuse_bad_text(text)
    for number in (parameters["max_tokens"], parameters["top_k"], parameters["seed"]):
        if number is not None and abs(number) > _MAX_INTEGER:
            raise click.UsageError(f"{number} is too large: at most {_MAX_INTEGER}")
    return InferenceRequest(
        prompt=prompt,
        model=None if model is None else ModelName(model),
        system=parameters["system"],
        max_tokens=parameters["max_tokens"],
        temperature=parameters["temperature"],
        top_p=parameters["top_p"],
        top_k=parameters["top_k"],
        stop=parameters["stop"],
        seed=parameters["seed"],
        reasoning_effort=None if effort is None else ReasoningEffort(effort),
        format=_format(parameters["output_format"]),
        flex=parameters["flex"] or None,
    )


def read_images(names: "Iterable[str]", read: "Sequence[bytes]" = ()) -> list[bytes]:
    """Return the images that were ``read`` before, and those of the files. Raises BadRequest or TooLarge."""
    from cli.ask.conversation import MAX_IMAGE_BYTES

    images = list(read)
    for name in names:
        try:
            with Path(name).expanduser().open("rb") as file:
                images.append(file.read(MAX_IMAGE_BYTES + 1))
        except (OSError, RuntimeError) as error:
            raise errors.BadRequest(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
        if sum(map(len, images)) > MAX_IMAGE_BYTES:
            raise errors.TooLarge(f"the images have more than {MAX_IMAGE_BYTES >> 20} MiB", hint="send smaller ones")
    return images


def _with_images(request: "InferenceRequest", names: tuple[str, ...]) -> "InferenceRequest":
    """Show the images before the prompt."""
    from shared.api.generation import ChatMessage, ImagePart

    if not names:
        return request
    images = tuple(map(ImagePart, read_images(names)))
    system = () if request.system is None else (ChatMessage("system", request.system),)
    messages = (*system, ChatMessage("user", request.prompt or "", images=images))
    return msgspec.structs.replace(request, prompt=None, system=None, messages=messages)


def _format(choice: str | None) -> "OutputFormat | None":
    from shared.api.generation import MAX_PROMPT_BYTES, FormatKind, OutputFormat

    if choice is None:
        return None
    if choice == "json":
        return OutputFormat(FormatKind.JSON)
    kind = {".json": FormatKind.JSON_SCHEMA, ".gbnf": FormatKind.GBNF}.get(Path(choice).suffix.lower())
    if kind is None:
        raise click.UsageError(f"--format {choice}: use `json`, a JSON schema in a .json file, or a grammar in a .gbnf file")
    try:
        with Path(choice).open("rb") as file:
            text = file.read(MAX_PROMPT_BYTES).decode()
    except OSError as error:
        raise click.UsageError(f"--format {choice}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--format {choice}: the file is not UTF-8") from error
    return OutputFormat(kind, text)


def refuse_bad_text(text: str) -> None:
    """Reject invalid UTF-8 in arguments, which Python keeps as lone surrogates (PEP 383): it can't be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise click.UsageError("the command line is not UTF-8; pipe the prompt in") from error


async def _stream_answer(connection: "CliConnection", request: "ProcessInferenceRequest", shown: _Shown, *, resume: bool) -> _Answer:
    """Return the answer. If it is shown, it goes to stdout immediately, and the returned text is empty."""
    from cli.output.stdout_writer import StdoutWriter
    from shared.resumable_stream import StreamRequest
    from shared.timing import retry_policy

    writer = StdoutWriter(sys.stdout)
    waiting = _WaitingNotice()
    thoughts = _ThoughtsWriter(writer)
    parts: list[str] = []
    thought: list[str] = []

    def lost(began: bool, error: errors.AimeshError) -> None:
        waiting.show("")
        if shown.notes:
            _note_lost("Connection lost. Resuming …" if began else f"{error.message}. Retrying …", in_line=not writer.at_line_start)

    stream_request = StreamRequest(connection, random.Random(), retry_policy.DEFAULT if resume else retry_policy.NONE)  # noqa: S311 - spreads load
    async with stream_request.ask(request, seconds=_FLEX_SECONDS if request.request.flex else _DEADLINE_SECONDS, lost=lost) as answer:
        try:
            async for chunk in answer:
                shows_thoughts = shown.answer and shown.thoughts
                waiting.show(chunk.waiting or ("Thinking …" if chunk.reasoning and shown.notes and not shows_thoughts else ""))
                if not shown.answer:
                    parts.append(chunk.text)
                    thought.append(chunk.reasoning)
                    continue
                if shows_thoughts:
                    await thoughts.write(chunk.reasoning, ends=bool(chunk.text))
                await writer.write(_for_stdout(chunk.text))
        finally:
            waiting.show("")
            # At a terminal, end the line before an error or ^C is printed.
            if shown.answer and sys.stdout.isatty():
                await writer.end_line()
        if shown.answer:
            await writer.end_line()
        return _Answer("".join(parts), "".join(thought), answer.end)


def _note_lost(text: str, *, in_line: bool) -> None:
    if in_line and sys.stdout.isatty() and sys.stderr.isatty():
        click.echo(err=True)  # start a new line after the answer's last word
    printing.note(printing.printable(text))


class _WaitingNotice:
    """Show one line at the terminal while the answer waits, for example for a model to load; erase it afterwards."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, text: str) -> None:
        if text != self._shown and sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{printing.styled(printing.printable(text), 'bright_black', sys.stderr)}")
            sys.stderr.flush()
            self._shown = text


class _ThoughtsWriter:
    """Shows thoughts, and an empty line between them and the answer."""

    def __init__(self, writer: "StdoutWriter") -> None:
        self._writer = writer
        #: Line breaks that may be the last ones.
        self._breaks = ""
        self._has_begun = False

    async def write(self, text: str, *, ends: bool) -> None:
        text = self._breaks + text if self._has_begun else text.lstrip("\n")
        shown = text.rstrip("\n")
        self._breaks = text[len(shown) :]
        self._has_begun = self._has_begun or bool(shown)
        await self._writer.write(_dimmed(shown))
        if ends and self._has_begun:
            await self._writer.write("\n\n")
            self._breaks, self._has_begun = "", False


def _dimmed(text: str) -> str:
    return printing.styled(printing.printable(text), "dim", sys.stdout) if text else ""


def _for_stdout(text: str) -> str:
    return printing.printable(text) if sys.stdout.isatty() else text


def _show_object(answer: _Answer) -> None:
    result = answer.result
    shown = printing.plain(result)
    assert isinstance(shown, dict)
    for field in ("finish_reasons", "stop_sequence"):
        if not shown[field]:
            del shown[field]
    usage = shown["usage"]
    assert isinstance(usage, dict)
    usage["total_tokens"] = result.usage.total_tokens
    thoughts = {"reasoning": answer.thoughts} if answer.thoughts else {}
    printing.show_json({"text": answer.text, **thoughts, **shown})
