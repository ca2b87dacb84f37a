"""How a command ends: its exit status, one line or one object on stderr, never a traceback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from cli import main
from cli.lazy_group import LazyGroup
from cli.machines import mesh, serve, worker
from shared import errors
from shared.api import gateway
from shared.types import ModelName
from tests.cli.fake_mesh import FakeMesh, Shell

ROOT = Path(main.__file__).parent.parent


def test_error_is_one_line_with_a_hint(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, errors.NotReachable("no gateway answers", hint="make up"))
    result = shell("models")
    assert (result.exit_code, result.stdout, result.stderr) == (5, "", "error: no gateway answers – make up\n")


def test_json_error_is_one_object(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, errors.NotReachable("no gateway answers", hint="make up"))
    result = shell("models", "--json")
    assert result.exit_code == 5
    assert result.stdout == ""
    assert json.loads(result.stderr) == {"error": {"code": "not_reachable", "message": "no gateway answers", "hint": "make up"}}


def test_rate_limit_says_when_to_retry(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, errors.Limited("100 requests in this hour are used", retry_after_seconds=90))
    result = shell("models")
    assert result.exit_code == 4
    assert result.stderr == "error: 100 requests in this hour are used – try again in 90 s\n"


def test_error_cannot_control_the_terminal(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, errors.BadRequest("a\x1b]0;title\x07b\nc"))
    assert shell("models").stderr == "error: a]0;titleb c\n"


def test_bug_is_one_line(shell: Shell) -> None:
    def broken(request: gateway.ListModels) -> gateway.ServedModels:
        raise ZeroDivisionError("by zero")

    shell.mesh.answer(gateway.list_models, broken)
    result = shell("models")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ZeroDivisionError: by zero – ")
    assert result.stderr.count("\n") == 1


def test_error_in_an_exception_group_is_found(shell: Shell) -> None:
    def broken(request: gateway.ListModels) -> gateway.ServedModels:
        raise ExceptionGroup("tasks", [ExceptionGroup("inner", [errors.NotAuthenticated("no")])])

    shell.mesh.answer(gateway.list_models, broken)
    assert shell("models").exit_code == 3


def test_debug_shows_the_traceback(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AICLI_DEBUG", "1")
    assert isinstance(shell("models").exception, errors.NotReachable)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["nonsense"], id="an unknown command"),
        pytest.param(["models", "--nonsense"], id="an unknown option"),
        pytest.param(["infer"], id="a missing argument"),
        pytest.param(["infer", "hi", "--max-tokens", "0"], id="out of range"),
        pytest.param(["infer", "hi", "--temperature", "warm"], id="no number"),
        pytest.param(["admin", "users", "set-role", "bob", "king"], id="an unknown role"),
    ],
)
def test_wrong_usage_exits_with_2_in_one_line(shell: Shell, arguments: list[str]) -> None:
    result = shell(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    as_json = shell(*arguments, "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stderr)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        pytest.param(["kyes"], "'keys'", id="a command"),
        pytest.param(["mesh", "bootstap"], "'bootstrap'", id="in a group that imports late"),
        pytest.param(["admin", "tikets"], "'tickets'", id="in a group that imports at once"),
        pytest.param(["infer", "--modl", "echo", "hi"], "'--model'", id="an option"),
    ],
)
def test_misspelled_name_suggests_the_nearest_one(shell: Shell, arguments: list[str], nearest: str) -> None:
    result = shell(*arguments)
    assert result.exit_code == 2
    assert f"Did you mean {nearest}?" in result.stderr


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("pull", "aicli models pull"), ("rm", "aicli models remove"), ("ps", "aicli top"),
        ("logs", "aicli stack logs"), ("status", "aicli nodes"), ("config", "aicli profile"),
    ],
)  # fmt: skip
def test_a_word_of_another_program_says_what_to_use_here(shell: Shell, word: str, instead: str) -> None:
    for arguments in ([word], [word, "llama3", "--nonsense"], ["-o", "table", word]):
        result = shell(*arguments)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.startswith(f"error: there is no command '{word}'; use `{instead}")


def test_every_command_that_a_word_stands_for_exists() -> None:
    known = {path for path, _ in commands_below(main.aicli)}
    for word, instead in main.HABITS.items():
        assert (word,) not in known, "a word that is a command needs no line"
        named = [instead] if isinstance(instead, tuple) else [part.split() for part in re.findall("`aicli ([a-z ]+)", instead)]
        assert named
        assert all(tuple(words) in known or words[0].startswith("--") for words in named), word


def test_words_with_the_same_meaning_run_the_command(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((gateway.ServedModel(ModelName("smollm2"), 1, 2048),)))
    for arguments in (["list"], ["ls"], ["-o", "json", "ls"], ["ls", "--json"]):
        result = shell(*arguments)
        assert result.exit_code == 0
        assert "smollm2" in result.stdout
    assert shell("version").stdout == shell("--version").stdout
    assert shell("help").stdout == shell("--help").stdout
    assert shell("help", "keys", "create").stdout == shell("keys", "create", "--help").stdout != ""
    assert "No such command 'kyes'. Did you mean 'keys'?" in shell("help", "kyes").stderr


def commands_below(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands_below(below, (*path, name))


def test_misspelled_names_suggest_the_nearest_one_at_every_level(shell: Shell) -> None:
    checked = 0
    for path, command in commands_below(main.aicli):
        if path == ("stack", "psql"):
            continue  # its options are psql's
        names = [*path[-1:], *(name for parameter in command.params for name in parameter.opts if name.startswith("--"))]
        for name in names:
            typed = name[:-2] + name[-1] + name[-2] if len(name) > 3 and name[-1] != name[-2] else f"{name}x"
            result = shell(*path, typed) if name.startswith("--") else shell(*path[:-1], typed)
            assert result.exit_code == 2, (path, typed)
            assert "Did you mean" in result.stderr or "(Possible options:" in result.stderr, (path, typed, result.stderr)
            assert f"'{name}'" in result.stderr, (path, typed, result.stderr)
            checked += 1
    assert checked > 200


def test_missing_key_exits_with_3(shell: Shell) -> None:
    shell.environment["AICLI_PROFILE"] = "keyless"
    folder = shell.folder / "home/.config/aimesh/profiles"
    folder.mkdir(parents=True)
    (folder / "keyless.toml").touch(mode=0o600)
    (folder / "keyless.toml").write_text('node_key_file = "k"')
    result = shell("keys", "list")
    assert result.exit_code == 3
    assert "aicli login" in result.stderr


def test_profile_option_equals_the_variable(shell: Shell) -> None:
    result = shell("--profile", "nowhere", "models")
    assert result.exit_code == 2
    assert "no profile 'nowhere'" in result.stderr


def test_help_lists_all_commands_in_sections(shell: Shell) -> None:
    lines = shell("--help").stdout.splitlines()
    for heading, section in main.SECTIONS.items():
        first = lines.index(f"{heading}:") + 1
        assert [line.split()[0] for line in lines[first : first + len(section)]] == list(section)
        assert lines[first + len(section)] == ""
    # Aligned, one line per command.
    assert len({line.index(line.split(maxsplit=1)[1]) for line in lines if line.split()[:1] in [["infer"], ["completion"], ["stack"]]}) == 1


def test_help_says_how_each_command_begins_and_imports_none() -> None:
    """A table of texts: importing the commands took three times as long as all the rest."""
    groups = [group._places for group in (worker.worker, mesh.mesh, serve.serve) if isinstance(group, LazyGroup)]
    places = [each for section in (*main.SECTIONS.values(), *groups) for each in section.values()]
    for place, summary in places:
        module, _, attribute = place.partition(":")
        begins = getattr(import_module(module), attribute).get_short_help_str(1000)
        assert begins.startswith(summary.removesuffix(".")), f"{place}: {begins}"
    code = "import sys, atexit; atexit.register(lambda: print('loaded:', *sys.modules)); from cli import main; main.main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert loaded & {place.partition(":")[0] for place, _ in places} == {"cli.main"}


def test_help_documents_every_exit_code() -> None:
    text = Shell(Path("/"), FakeMesh(), {})("--help").output
    for code in ("0", "1", "2", "3", "4", "5", "130"):
        assert f"\n  {code:>5}  " in text


def test_closed_stdout_is_no_failure() -> None:
    """`aicli … | head -1`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "from cli import main; main.main()"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code, "completion", "zsh"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


FORBIDDEN = {
    "rich",
    "prompt_toolkit",
    "pygments",
    "httpx",
    "litestar",
    "structlog",
    "asyncpg",
    "redis",
    "prometheus_client",
    "uvicorn",
    "jinja2",
    "argon2",
    "llama_cpp",
}


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("from cli import main; main.aicli.main(['infer', '--help'])", id="aicli infer --help"),
        pytest.param("from cli import main; main.aicli.main(['--help'])", id="aicli --help"),
        pytest.param(
            "import cli.ask.infer, cli.output.stdout_writer, cli.output.printing, cli.interrupts; from shared.node import client",
            id="all that infer needs",
        ),
    ],
)
def test_infer_imports_only_what_it_needs(code: str) -> None:
    script = f"import sys, atexit\natexit.register(lambda: print('loaded:', *sys.modules))\n{code}"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    loaded = {name.partition(".")[0] for name in ended.stdout.rpartition("loaded:")[2].split()}
    assert "click" in loaded or "shared" in loaded
    assert not loaded & FORBIDDEN
