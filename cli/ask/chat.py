"""`aicli chat`: an interactive conversation with a model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click
from msgspec.structs import replace

from cli import value_completion
from cli.ask.infer import effort_option, model_option, refuse_bad_text, thoughts_option
from cli.cli_context import CliContext
from shared import errors

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from cli.ask.chat_files import ChatFile
    from cli.connection import CliConnection
    from cli.profile import Profile


def _complete_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    from cli.ask.chat_files import ChatFolder, folder_of_user

    folder = ChatFolder(folder_of_user(value_completion.context_of(context).environment))
    return value_completion.matching([(name, "") for name in folder.names()], incomplete)


@click.command()
@model_option
@click.option("-s", "--system", metavar="TEXT", help="System prompt.")
@click.option("-c", "--continue", "continues", is_flag=True, help="Continue the latest conversation.")
@click.option("--load", "name", metavar="NAME", shell_complete=_complete_names, help="Continue the conversation that `/save NAME` named.")
@effort_option
@thoughts_option
@click.pass_obj
def chat(
    here: CliContext,
    /,
    *,
    model: str | None,
    system: str | None,
    continues: bool,
    name: str | None,
    reasoning_effort: str | None,
    no_thoughts: bool,
) -> None:
    """Chat with a model. Answers stream as Markdown, after the model's thoughts; each one is followed by its speed and cost.

    Type /help for the commands. Ctrl-C stops an answer, Ctrl-D leaves. Conversations are kept in $XDG_STATE_HOME/aimesh/chats.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("aicli chat needs a terminal; in scripts and pipes, use aicli infer")
    if continues and name:
        raise click.UsageError("--continue and --load exclude each other")
    for text in (model, system):
        refuse_bad_text(text or "")
    profile = here.profile(key_needed=True)
    file = _open_file(here, model=model, system=system, latest=continues, name=name)
    if reasoning_effort is not None:
        settings = file.conversation.settings.with_setting("reasoning_effort", reasoning_effort)
        file.conversation = replace(file.conversation, settings=settings)
    with _typing_ahead(sys.stdin):
        _run(here, profile, file, shows_thoughts=not no_thoughts)


def _open_file(here: CliContext, *, model: str | None, system: str | None, latest: bool, name: str | None) -> "ChatFile":
    """Open the conversation to continue, or a new one, with the model and system prompt of the command line."""
    from cli.ask.chat_files import ChatFolder, folder_of_user
    from cli.ask.conversation import ChatConversation

    folder = ChatFolder(folder_of_user(here.environment))
    folder.prepare()
    if latest and (name := next(iter(folder.names()), None)) is None:
        raise errors.BadRequest("there is no conversation to continue", hint="start one: aicli chat")
    file = folder.load(name) if name else folder.new(ChatConversation())
    chosen = {"model": model, "system": system}
    file.conversation = replace(file.conversation, **{name: value for name, value in chosen.items() if value is not None})
    return file


def _run(here: CliContext, profile: "Profile", file: "ChatFile", *, shows_thoughts: bool) -> None:
    from cli.ask.chat_session import ChatSession

    async def work(connection: "CliConnection") -> None:
        await ChatSession(connection, file, shows_thoughts=shows_thoughts).run()

    here.run_with(profile, work)


@contextmanager
def _typing_ahead(stdin: TextIO) -> Iterator[None]:
    """Keep what the user types during an answer for the next prompt, Enter included, and out of the answer."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    descriptor = stdin.fileno()
    before = termios.tcgetattr(descriptor)
    ours = termios.tcgetattr(descriptor)
    ours[0] &= ~termios.ICRNL
    ours[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSADRAIN, ours)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
