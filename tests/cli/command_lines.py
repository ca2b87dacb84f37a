"""Runs command lines against a mesh that answers each method with a sample of its reply, and writes what scripts depend on.

command_lines.txt has a line `$ …` for each command, its requests (`>`), what it prints for programs, and its exit code if it fails. Texts
for people are not in it. To add lines, or to write it after a change that is meant:

    python -m tests.cli.command_lines >lines.txt && mv lines.txt tests/cli/command_lines.txt

Each feature has its own recording: add its path to the command.
"""

import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from cli import profile
from cli.profile import Profile
from shared.api import declared
from shared.api.method import Method
from shared.types import Credential
from tests import feature_parts
from tests.cli.fake_mesh import FakeMesh, Shell

_OWN = Path(__file__).with_name("command_lines.txt")
RECORDINGS = [_OWN, *feature_parts.files("cli/command_lines.txt")]
SAMPLE_TIME = "2026-01-02T03:04:05Z"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


def recorded_lines(recording: Path = _OWN) -> list[str]:
    """Return the command lines of a recording. `<<<` ends a command and begins its stdin, as in bash."""
    return [line.removeprefix("$ ") for line in recording.read_text(encoding="utf-8").splitlines() if line.startswith("$ ")]


def run(lines: list[str], folder: Path) -> Iterator[str]:
    """Run each line in a folder with a profile, and yield what the recording has for it."""
    profile.write(folder / ".aimesh/profile.toml", Profile(node_key_file=folder / "k", api_key=Credential("aip_live_k"), username="alice"))
    answers = FakeMesh()
    answer_all(answers)
    for line in lines:
        arguments, _, stdin = line.partition(" <<< ")
        mesh = FakeMesh(_answers=answers._answers)
        result = Shell(folder, mesh, {"HOME": str(folder)})(*shlex.split(arguments), stdin="".join(shlex.split(stdin)))
        requests = [
            f"> {call.method} {_without_clock(msgspec.json.encode(call.request, order='sorted').decode(), line)}" for call in mesh.calls
        ]
        shown = result.stdout.splitlines() if re.search("-o (json|yaml|csv)|--json|--csv", arguments) else []
        yield "\n".join([f"$ {line}", *requests, *shown, *([f"exit {result.exit_code}"] if result.exit_code else [])])


def answer_all(mesh: FakeMesh, text: str = "") -> None:
    """Answer each method of the API with a sample of its reply."""
    for method in declared.methods():
        if isinstance(method, Method):
            mesh.answer(method, sample(method.reply, text))


def sample(kind: Any, text: str = "") -> Any:
    """Return a value of this type of the contract: its texts are ``text`` or the names of their fields, its lists have one item."""
    return msgspec.convert(_sample(inspect.type_info(kind), kind.__name__, text), kind)


def _sample(info: inspect.Type, name: str, text: str) -> object:  # noqa: C901, PLR0911  # one for each type
    match info:
        case inspect.StructType():
            fields = {each.encode_name: _sample(each.type, each.name, text) for each in info.fields}
            return list(fields.values()) if info.array_like else fields | ({info.tag_field: info.tag} if info.tag_field else {})
        case inspect.UnionType():
            return _sample(next(each for each in info.types if not isinstance(each, inspect.NoneType)), name, text)
        case inspect.Metadata():
            return _sample(info.type, name, text)
        case inspect.EnumType():
            return next(iter(info.cls)).value
        case inspect.LiteralType():
            return info.values[0]
        case inspect.DictType():
            return {_sample(info.key_type, "key", ""): _sample(info.value_type, "value", text)}
        case inspect.TupleType():
            return [_sample(each, name, text) for each in info.item_types]
        case inspect.CollectionType():
            return [_sample(info.item_type, name.removesuffix("s"), text)]
        case inspect.IntType() | inspect.FloatType():
            least = max(3, int(info.ge or 0))
            return least if info.le is None else min(least, int(info.le))
        case inspect.StrType():
            samples = (text, name, "3", name[:2].upper(), "hf:3", "0" * 64, f"sha256:{0:064}")
            return next(each for each in filter(None, samples) if re.search(info.pattern or "", each))
        case inspect.BoolType():
            return True
    known = {inspect.DateTimeType: SAMPLE_TIME, inspect.DateType: SAMPLE_TIME[:10], inspect.UUIDType: f"{0:032x}", inspect.BytesType: ""}
    return known.get(type(info), name)


def _without_clock(request: str, line: str) -> str:
    """Replace times that follow from the clock by their distance from now, in minutes."""

    def distance(at: re.Match[str]) -> str:
        if at[0] == SAMPLE_TIME or at[0][:10] in line:
            return at[0]
        return f"now{(datetime.fromisoformat(at[0]) - datetime.now(UTC)).total_seconds() / 60:+.0f}min"

    return _TIME.sub(distance, request)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as chosen:
        print("\n".join(run(recorded_lines(*map(Path, sys.argv[1:])), Path(chosen))))
