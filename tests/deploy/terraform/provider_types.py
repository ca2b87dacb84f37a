"""Names of the arguments of Google's provider, from the TypeScript types that cdktf generates from the provider's own schema."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests import capabilities

_INTERFACE = re.compile(r"^export interface (\w+)[^{\n]*\{\n(.*?)^\}", re.M | re.S)
_ROOT = re.compile(r"^export interface (\w+) extends cdktf\.TerraformMetaArguments", re.M)
#: The link in a comment ends with the argument's name in Terraform; the type of a block is an interface.
_ARGUMENT = re.compile(r"#(\w+) [^\n]*\}\n(?:(?!readonly ).)*?readonly \w+(\??): ([^;]+);", re.S)
_ATTRIBUTE = re.compile(r"^    get (\w+)\(\): ([^;]+);", re.M)
_VERSION = re.compile(r"providers/hashicorp/google/([\d.]+)/")


@dataclass(frozen=True)
class Argument:
    name: str
    required: bool
    #: The TypeScript type.
    type: str
    #: The interface of a block, or None.
    block: str | None


@dataclass(frozen=True)
class Kind:
    """A resource or data source."""

    root: str
    interfaces: dict[str, tuple[Argument, ...]]
    #: The last names that a reference may have, computed or not, with their TypeScript types.
    attributes: dict[str, str]


def _folder() -> Path:
    capabilities.require("hcl")
    folder = capabilities.find_package("@cdktf/provider-google")
    assert folder
    return folder / "lib"


@cache
def read(name: str) -> Kind | None:
    """Read `google_x` or `data_google_x`; None if the provider has no such thing."""
    data = name.startswith("data_")
    short = name.removeprefix("data_").removeprefix("google_").replace("_", "-")
    folder = _folder() / (f"data-google-{short}" if data else short)
    if not folder.is_dir():
        return None
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.d.ts")))
    interfaces = {match[1]: _arguments(match[2]) for match in _INTERFACE.finditer(text)}
    root = _ROOT.search(text)
    assert root
    main = text[text.index("static readonly tfResourceType") :]
    attributes = {re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower(): type_ for name, type_ in _ATTRIBUTE.findall(main)}
    return Kind(root[1], interfaces, attributes)


def _arguments(text: str) -> tuple[Argument, ...]:
    found = []
    for name, optional, type_ in _ARGUMENT.findall(text):
        block = re.match(r"([A-Z]\w+)(?:\[\])?(?: \| |$)", type_)
        found.append(Argument(name, not optional, type_, block[1] if block else None))
    return tuple(found)


def version() -> tuple[int, int]:
    found = _VERSION.search((_folder() / "project/index.d.ts").read_text(encoding="utf-8"))
    assert found
    major, minor, _ = found[1].split(".")
    return int(major), int(minor)
