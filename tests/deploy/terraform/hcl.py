"""Our Terraform files as the package hcl2json reads them, and the values of their references.

hcl2json returns each expression as a string `${…}`, and literals unchanged.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests import capabilities

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/terraform"
MODULES = sorted(path for path in (FOLDER / "modules").iterdir())
EXAMPLES = sorted(path for path in (FOLDER / "examples").iterdir())
#: Terraform's own arguments and blocks, in every resource or module.
META = frozenset({"for_each", "count", "depends_on", "lifecycle", "provider", "source"})

_STRING = re.compile(r'"((?:[^"\\$]|\\.|\$(?!\{))*)"')
_REFERENCE = re.compile(r"(?<![\w.\"-])((?:var|local|module|data|google_\w+)(?:\.\w+|\[[^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*\])+)")
_STEP = re.compile(r"\.?(\w+)|\[\"?([^\[\]\"]+)\"?\]|\[([\w.\[\]]+)\]")


@cache
def parse() -> dict[Path, dict[str, Any]]:
    capabilities.require("hcl")
    package, node = capabilities.find_package("@cdktf/hcl2json"), capabilities.find_program("node")
    assert package
    assert node
    files = "\n".join(str(path) for folder in (*MODULES, *EXAMPLES) for path in folder.glob("*.tf"))
    done = subprocess.run(
        [node, Path(__file__).with_name("hcl.mjs"), package], input=files, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {Path(path): content for path, content in json.loads(done.stdout).items()}


@dataclass(frozen=True)
class Block:
    kind: str
    #: Type and name of a resource or data source, or only a name.
    labels: tuple[str, ...]
    body: Any

    @property
    def address(self) -> str:
        prefix = {"resource": "", "variable": "var.", "data": "data.", "module": "module.", "output": "output."}[self.kind]
        return prefix + ".".join(self.labels)


class Configuration:
    """A folder with a module or an example."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blocks: dict[str, Block] = {}
        self.locals: dict[str, Any] = {}
        for path in sorted(folder.glob("*.tf")):
            for kind, content in parse()[path].items():
                self._add(kind, content)

    def _add(self, kind: str, content: Any) -> None:
        if kind == "locals":
            for each in content:
                assert not self.locals.keys() & each.keys()
                self.locals |= each
        elif kind in {"resource", "data"}:
            for type_, named in content.items():
                for name, (body,) in named.items():
                    self._put(Block(kind, (type_, name), body))
        elif kind in {"variable", "module", "output"}:
            for name, (body,) in content.items():
                self._put(Block(kind, (name,), body))
        else:
            assert kind in {"terraform", "provider"}, kind

    def _put(self, block: Block) -> None:
        assert block.address not in self.blocks, f"{self.folder.name}: two {block.address}"
        self.blocks[block.address] = block

    def of(self, *kinds: str) -> Iterator[Block]:
        return (block for block in self.blocks.values() if block.kind in kinds)

    def called(self, call: Block) -> "Configuration":
        return load((self.folder / call.body["source"]).resolve())

    def references(self) -> set[str]:
        """Return references such as `var.size.min` or `module.gke[0].id`, from all expressions except variables' validations."""
        contents = (parse()[path] for path in self.folder.glob("*.tf"))
        texts = (text for content in contents for kind, body in content.items() if kind != "variable" for text in _texts(body))
        return {reference for text in texts for reference in find_references(text)}


@cache
def load(folder: Path) -> Configuration:
    return Configuration(folder)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def expressions(text: str) -> Iterator[str]:
    """Yield the code in each `${…}` of a string, without the text around it."""
    at = 0
    while (start := text.find("${", at)) >= 0:
        if start and text[start - 1] == "$":
            at = start + 2
            continue
        depth, at = 1, start + 2
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        yield text[start + 2 : at - 1]


def find_references(text: str) -> Iterator[str]:
    for code in expressions(text):
        for match in _REFERENCE.finditer(code):
            yield match[1]
            # A key may be a reference.
            yield from (inner[1] for key in re.findall(r"\[([^\"].*)\]", match[1]) for inner in _REFERENCE.finditer(key))
        # A string in the code may contain expressions too.
        if "${" in code:
            yield from find_references(code)


def steps(reference: str) -> list[str]:
    """Split a reference: `google_x.this["a"].id` -> google_x, this, a, id."""
    return [match[1] or match[2] or match[3] for match in _STEP.finditer(reference)]


@dataclass(frozen=True)
class Scope:
    """Values of the variables of one module call."""

    configuration: Configuration
    #: Arguments of the call, already evaluated.
    arguments: dict[str, Any]

    def call(self, name: str) -> "Scope":
        block = self.configuration.blocks[f"module.{name}"]
        return Scope(self.configuration.called(block), {key: self.evaluate(value) for key, value in block.body.items() if key not in META})

    def evaluate(self, value: Any) -> Any:
        """Replace references to variables and locals, and compute fractions. Other expressions stay strings."""
        if isinstance(value, dict):
            return {key: self.evaluate(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.evaluate(each) for each in value]
        if not isinstance(value, str) or not (whole := re.fullmatch(r"\$\{([^{}]+)\}", value)):
            return value
        code = whole[1].strip()
        if fraction := re.fullmatch(r"(\S+) / (\S+)", code):
            above, below = (self._find(each) for each in fraction.groups())
            return above / below
        return self._find(code) if _REFERENCE.fullmatch(code) else value

    def _find(self, reference: str) -> Any:
        kind, name, *rest = steps(reference)
        match kind:
            case "var" if name in self.arguments:
                found = self.arguments[name]
            case "var":
                found = self.configuration.blocks[f"var.{name}"].body.get("default")
            case "local":
                found = self.evaluate(self.configuration.locals[name])
            case _:
                return f"${{{reference}}}"
        for step in rest:
            key = self._find(step) if step.startswith(("var.", "local.")) else step
            if not isinstance(found, dict) or key not in found:
                return f"${{{reference}}}"
            found = found[key]
        return found

    def get(self, resource: str, path: str) -> Any:
        """Return an argument of a resource, such as `node_config.machine_type`. In a string with a map, names are quoted."""
        value: Any = self.configuration.blocks[resource].body
        for name in path.split(" "):
            if isinstance(value, list):
                (value,) = value
            if isinstance(value, str):
                (code,) = re.findall(rf'"{re.escape(name)}"\s*=\s*([^\n]+)', value)
                value = json.loads(code) if code.startswith('"') else f"${{{code}}}"
            else:
                value = value[name]
        return self.evaluate(value)
