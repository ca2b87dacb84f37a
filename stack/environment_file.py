"""Checks an environment file, such as Compose's `.env`: which of its variables nothing reads, and which values would be refused."""

import difflib
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shared import config, errors
from shared.config import CheckedVariables
from stack import stack_home, stack_plan
from stack.settings import StackSettings

#: A hundred times all settings.
MAX_FILE_BYTES = 1024 * 1024
#: Five settings modules take half a second to import.
CHECK_SECONDS = 60
#: Variables of `aicli`, of set-up, and (by prefix) of programs that aren't ours.
_TOOLS = {"BUILD", "ENGINE", "ENGINE_WHEEL", "CMAKE_ARGS", "FORCE_CMAKE", *stack_plan.MACHINE}
_PREFIXES = ("AICLI_", "AIMESH_", "COMPOSE_", "DOCKER_", "BUILDKIT_", "OTEL_", *stack_plan.ENGINE_PREFIXES)
#: With a lower value, the nearest name is often one of another subject.
_SIMILAR = 0.7

_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<rest>.*)")
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<text>.*)(?P=quote)\s*(?:#.*)?""")
_COMPOSE_VARIABLE = re.compile(r"\$\{(\w+)")


@dataclass(frozen=True, slots=True)
class Assignment:
    line: int
    name: str
    value: str
    #: False for a value with `$`, which Compose or a shell replaces.
    is_literal: bool = True


class FileMistake(msgspec.Struct, frozen=True):
    line: int
    text: str


def parse(text: str) -> tuple[list[Assignment], list[FileMistake]]:
    """Read NAME=value lines as Compose does. Pure."""
    found, mistakes = [], []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            mistakes.append(FileMistake(number, "write NAME=value, or # before a comment"))
            continue
        quoted = _QUOTED.fullmatch(match["rest"])
        value = quoted["text"] if quoted else re.sub(r"(^|\s)#.*$", "", match["rest"]).strip()
        found.append(
            Assignment(number, match["name"], value, is_literal="$" not in value or (quoted is not None and quoted["quote"] == "'"))
        )
    return found, mistakes


def check(path: Path, folder: Path) -> list[FileMistake]:
    """Return all mistakes of the file, by line. Relative paths in it start at ``folder``. Raises BadRequest if it can't be read."""
    given, mistakes = parse(_read(path))
    environment = {one.name: _placed(one, folder) for one in given if one.is_literal}
    services = _ask_services(environment)
    stack = config.check_variables(StackSettings, environment)
    beside = path.parent / "compose.yaml"
    for_compose = path.name.startswith(".env") and beside.is_file()
    compose = _compose_variables(beside if for_compose else stack_home.checkout() / "compose.yaml")
    known = {*services.names, *stack.names, *compose, *(f"{name}_FILE" for name in (*services.names, *stack.names))}
    # Paths in a container aren't on this machine.
    elsewhere = tuple(f"{name}: cannot read" for name in compose)
    refused = [one for one in (*services.mistakes, *stack.mistakes) if not one.startswith(elsewhere)]
    mistakes += [*_repeated(given), *_unread(given, known), *_at_lines(given, refused)]
    if for_compose:
        mistakes += _not_passed_on(given, known - compose)
    return sorted(mistakes, key=lambda one: (one.line, one.text))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise errors.BadRequest(f"{path} is larger than {MAX_FILE_BYTES} bytes", hint="give a file of NAME=value lines")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise errors.BadRequest(f"cannot read {path}: {why}", hint="give a file of NAME=value lines") from error


def _placed(one: Assignment, folder: Path) -> str:
    return str(folder / Path(one.value).expanduser()) if one.name.endswith("_FILE") and one.value else one.value


def _ask_services(environment: Mapping[str, str]) -> CheckedVariables:
    command = [sys.executable, "-m", "services.settings_check"]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves; on stdin, because values can be secrets
            command,
            input=msgspec.json.encode(environment),
            stdout=subprocess.PIPE,
            cwd=stack_home.checkout(),
            check=True,
            timeout=CHECK_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise errors.Internal("cannot check the settings of the services", hint="reinstall aimesh") from error
    return msgspec.json.decode(done.stdout, type=CheckedVariables)


def _compose_variables(file: Path) -> frozenset[str]:
    """Return the variables of compose.yaml; none for an installation without a checkout."""
    try:
        return frozenset(_COMPOSE_VARIABLE.findall(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return frozenset()


def _repeated(given: Iterable[Assignment]) -> Iterator[FileMistake]:
    lines: dict[str, int] = {}
    for one in given:
        if one.name in lines:
            yield FileMistake(one.line, f"{one.name}: line {lines[one.name]} sets it too, and only this line counts")
        lines[one.name] = one.line


def _unread(given: Iterable[Assignment], known: Collection[str]) -> Iterator[FileMistake]:
    for one in given:
        if one.name not in known and one.name not in _TOOLS and not one.name.upper().startswith(_PREFIXES):
            nearest = difflib.get_close_matches(one.name.upper(), known, n=1, cutoff=_SIMILAR)
            question = f"; did you mean {nearest[0]}?" if nearest else ""
            yield FileMistake(one.line, f"{one.name}: nothing reads this variable{question}")


def _not_passed_on(given: Iterable[Assignment], missing: Collection[str]) -> Iterator[FileMistake]:
    for one in given:
        if one.name in missing:
            yield FileMistake(one.line, f"{one.name}: compose.yaml does not pass it on; set it in compose.override.yaml")


def _at_lines(given: Iterable[Assignment], mistakes: Iterable[str]) -> Iterator[FileMistake]:
    """Place each mistake at the last line that sets the variable that it begins with, or names. One for each of them is enough."""
    lines = {one.name.removesuffix("_FILE"): one.line for one in given} | {one.name: one.line for one in given}
    found: dict[str, str] = {}
    for mistake in mistakes:
        name = next((name for name in re.findall(r"\w+", mistake) if name in lines), None)
        # Others are about a default, which the file doesn't set.
        if name is not None:
            found.setdefault(name, mistake)
    yield from (FileMistake(lines[name], mistake) for name, mistake in found.items())
