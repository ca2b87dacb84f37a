"""`aicli`, the command line program. Owns the list of commands and the handling of errors.

Only click and a few small modules are imported here. Each command imports what it needs when it runs, because users notice half a second
of imports.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from cli import missing_packages, value_completion
from cli.cli_context import CliContext
from cli.lazy_group import LazyGroup, Place
from cli.output import print_format, printing
from cli.output.exit_codes import MEANINGS, ExitCode, for_error
from shared import errors, features

if TYPE_CHECKING:
    from shared.errors import AimeshError

#: Heading -> command -> where it is, and its line of the help: how its own text begins. Help imports no command for that.
_OWN_SECTIONS = {
    "Ask": {
        "infer": ("cli.ask.infer:infer", "Send a prompt to a model and print the answer."),
        "chat": ("cli.ask.chat:chat", "Chat with a model."),
        "run": ("cli.ask.run:run", "Chat with a model; with a PROMPT, print one answer."),
        "rerank": ("cli.ask.rerank:rerank", "Rank text files by their relevance to a query, the most relevant first."),
        "models": (
            "cli.ask.models:models",
            "List models available now, load and unload them, and download models.",
        ),
        "trace": ("cli.ask.trace:trace", "Show the trace of a request: where its time went."),
    },
    "Account": {
        "register": ("cli.account.login:register", "Create an account."),
        "login": (
            "cli.account.login:login",
            "Sign in: create an API key for this machine and save it in the current profile.",
        ),
        "logout": ("cli.account.login:logout", "Log out: revoke this machine's key and remove it from the profile."),
        "whoami": ("cli.account.login:whoami", "Show the account of the key that aicli uses."),
        "profile": ("cli.account.profiles:profiles", "List, choose and remove profiles: the meshes and addresses that aicli can use."),
        "keys": ("cli.account.keys:keys", "Create, list, rotate and revoke API keys, and scan for leaked ones."),
        "policy": ("cli.account.policy:policy", "Show and change policies: the allowed models, machines and providers."),
        "guard": ("cli.account.guard:guard", "Test the guardrails of a policy."),
        "usage": ("cli.account.usage:usage", "Show your usage and cost by day and key, and your remaining quota."),
        "quota": (
            "cli.account.usage:quota",
            "Show your remaining quota: requests this hour, credits, and every limit.",
        ),
        "billing": ("cli.account.billing:billing", "Show your plan and what it includes."),
        "dashboard": ("cli.account.dashboard:dashboard", "Open the web dashboard in a browser, already signed in."),
    },
    "Machines": {
        "serve": ("cli.machines.serve:serve", "Serve your mesh at localhost, for programs of this machine."),
        "worker": ("cli.machines.worker:worker", "Run a worker on this machine, in the foreground."),
        "mesh": ("cli.machines.mesh:mesh", "Connect to a mesh from another machine, or run the DHT nodes and relays of a mesh."),
        "nodes": ("cli.ask.nodes:nodes", "List the nodes of the mesh, and show why a node gets no requests."),
        "doctor": ("cli.doctor.doctor_command:doctor", "Diagnose problems and suggest fixes."),
        "update": (
            "cli.machines.update:update",
            "Install the version of aimesh that your mesh has, and restart the services.",
        ),
        "uninstall": ("cli.machines.uninstall:uninstall", "Take this machine out of its mesh, and remove aimesh from it."),
    },
    "Administer": {
        "top": ("cli.top.top_command:top", "Live view of the mesh: health, alerts, requests, tokens, queues and nodes."),
        "alerts": ("cli.admin.alerts:alerts", "List and silence alerts."),
        "admin": ("cli.admin.admin_commands:admin", "Administer the installation (requires a key of kind adm)."),
    },
    "Stack": {
        "stack": ("stack.stack_commands:stack", "Run the whole platform on this machine: five services, PostgreSQL, Valkey and NATS."),
    },
    "Shell": {
        "completion": ("cli.main:completion", "Print the completion script of a shell."),
    },
}

SECTIONS: Mapping[str, Mapping[str, Place]] = {
    section: places | {each.name: (each.place, each.summary) for each in features.commands() if each.section == section}
    for section, places in _OWN_SECTIONS.items()
}

#: What people type who know Ollama, Docker or Tailscale: the arguments to run, or a text that says what to use instead.
HABITS: Mapping[str, tuple[str, ...] | str] = {
    "help": ("--help",),
    "version": ("--version",),
    "list": ("models", "list"),
    "ls": ("models", "list"),
    "pull": "`aicli models pull SOURCE`, such as ollama:NAME:TAG or hf:OWNER/REPO:QUANT",
    "rm": "`aicli models remove NAME`",
    "ps": "`aicli top` for what runs now, or `aicli nodes` for the machines and their models",
    "logs": "`aicli stack logs`, or `aicli trace ID` for one request",
    "status": "`aicli nodes` for the mesh, `aicli stack status` for the programs of this machine, or `aicli doctor`",
    "upgrade": ("update",),
    "config": "`aicli profile` for this machine, or `aicli admin config` for the mesh",
}

_EXIT_CODES = "\n".join(["\b", "Exit codes:", *(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())])
_ENVIRONMENT = """\b
Environment:
  AICLI_PROFILE  profile name or path of a profile file
  AICLI_API_KEY  API key to use instead of the profile's key
  AIMESH_URL     address to use over HTTPS instead of a profile, with the key in AIMESH_API_KEY
  AIMESH_CA_FILE CA of that address's certificate, if it is private
  AIMESH_HOME    folder of the stack to use
  AICLI_DEBUG    1 prints tracebacks
  NO_COLOR       any value disables colors"""


class _ReaderLeft(Exception):
    """The reader of stdout is gone."""


class Aicli(LazyGroup):
    """The group of all commands. ``main`` handles every way in which a command can end."""

    def main(  # type: ignore[override]  # narrower than click's overloads: it always exits
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: object
    ) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        as_json = print_format.wants_json(arguments)
        extra["standalone_mode"] = False
        try:
            result = super().main(arguments, prog_name or "aicli", **extra)  # type: ignore[call-overload]
            sys.stdout.flush()
            # Without standalone mode, click returns the code of ctx.exit() instead of raising.
            code = result if isinstance(result, int) else ExitCode.OK
        except (KeyboardInterrupt, click.Abort):
            code = _interrupted(as_json)
        except (_ReaderLeft, BrokenPipeError):
            code = _reader_left()
        except click.ClickException as error:
            code = _refused(error, as_json)
        except Exception as error:
            if os.environ.get("AICLI_DEBUG") == "1":
                raise
            code = _failed(error, as_json)
        sys.exit(int(code))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        match HABITS.get(args[0]) if args else None:
            case (option,):
                args = [*args[1:], option]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        match HABITS.get(args[0]):
            case str() as instead:
                raise click.UsageError(f"there is no command {args[0]!r}; use {instead}", ctx)
            case (group, command):
                args = [group, command, *args[1:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        # Handle these before click, which would print an empty line for one and exit with 1 for the other.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error
        except BrokenPipeError as error:
            raise _ReaderLeft from error


def _interrupted(as_json: bool) -> ExitCode:
    if sys.stderr.isatty() and not as_json:
        click.echo(err=True)  # end the line with the ^C
    printing.show_error("interrupted", "interrupted", "", as_json=as_json)
    return ExitCode.INTERRUPTED


def _reader_left() -> ExitCode:
    """Exit quietly, as in `aicli infer … | head -1`: the reader has enough."""
    # Python flushes stdout again at exit, so it must lead somewhere. (OSError: it is not a file, as in tests.)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OK


def _refused(error: click.ClickException, as_json: bool) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        error.show()
        return error.exit_code
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see {context.command_path} --help" if context else ""
    code = "usage" if isinstance(error, click.UsageError) else "failed"
    printing.show_error(code, error.format_message(), hint, as_json=as_json)
    return error.exit_code


def _failed(error: Exception, as_json: bool) -> ExitCode:
    known = _as_known(error)
    hint = known.hint
    if not hint and known.retry_after_seconds:
        hint = f"try again in {known.retry_after_seconds:.0f} s"
    code = errors.code_of(known)
    printing.show_error(code, known.message, hint, as_json=as_json)
    return for_error(code)


def _as_known(error: Exception) -> "AimeshError":
    """Return an AimeshError unchanged, and the first one of a group. Anything else is a bug of aicli or a problem of the machine."""
    if isinstance(error, errors.AimeshError):
        return error
    if isinstance(error, ExceptionGroup):
        return _as_known(error.exceptions[0])
    if isinstance(error, ImportError) and (missing := missing_packages.explain(error)) is not None:
        return missing
    if isinstance(error, OSError) and error.strerror:
        return errors.Internal(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    return errors.Internal(
        f"{type(error).__name__}: {error}", hint="run it again with AICLI_DEBUG=1 to see where, and please report this bug"
    )


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from shared.telemetry.version import version

    click.echo(f"aicli {version()}")
    click.echo(f"features: {', '.join(features.known()) or 'none'}")
    context.exit()


@click.group(
    cls=Aicli, sections=SECTIONS, epilog=f"{_EXIT_CODES}\n\n{_ENVIRONMENT}", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--profile", metavar="NAME", shell_complete=value_completion.profiles, help="Profile to use: a name or the path of a profile file."
)
@print_format.format_options
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit.")
@click.pass_context
def aicli(context: click.Context, profile: str | None) -> None:
    """Run AI models on your own machines: send prompts, manage keys, run workers.

    Try `aicli infer "Say hello"`. Every list command takes --watch, and -o table, wide, json, yaml or csv.
    """
    here = context.obj if isinstance(context.obj, CliContext) else CliContext(os.environ, Path.cwd())
    context.obj = here.with_profile(profile) if profile else here


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(aicli completion bash)"      in ~/.bashrc
    zsh:  eval "$(aicli completion zsh)"       in ~/.zshrc
    fish: aicli completion fish | source       in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "aicli", "_AICLI_COMPLETE").source())


def main() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        # If a terminal cannot show a character, print an escape instead of failing.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        aicli.main()
    except SystemExit as end:
        if "obstore" in sys.modules:
            from shared import processes

            processes.end(int(end.code or 0))
        raise


if __name__ == "__main__":
    main()
