"""Every resource, argument, block and attribute in our files exists in the provider."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.terraform import hcl, provider_types
from tests.deploy.terraform.provider_types import Kind

FOLDERS = [*hcl.MODULES, *hcl.EXAMPLES]


def given(body: dict[str, Any]) -> dict[str, list[Any]]:
    """Return each argument with its values, one for each block, including dynamic blocks."""
    found = {name: value if isinstance(value, list) else [value] for name, value in body.items() if name != "dynamic"}
    for name, blocks in body.get("dynamic", {}).items():
        found[name] = found.get(name, []) + [content for block in blocks for content in block["content"]]
    return found


def mistakes(kind: Kind, interface: str, body: dict[str, Any], where: str) -> Iterator[str]:
    """Yield unknown and missing arguments of a block and of its nested blocks."""
    arguments = {argument.name: argument for argument in kind.interfaces[interface]}
    for name, values in given(body).items():
        if name not in arguments:
            yield f"{where}.{name} is unknown"
        elif inner := arguments[name].block:
            for each in values:
                yield from mistakes(kind, inner, each, f"{where}.{name}") if isinstance(each, dict) else [f"{where}.{name} is a block"]
    yield from (f"{where}.{name} is missing" for name, argument in arguments.items() if argument.required and name not in given(body))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_arguments_and_blocks(folder: Path) -> None:
    found = []
    for block in hcl.load(folder).of("resource", "data"):
        name = block.labels[0] if block.kind == "resource" else f"data_{block.labels[0]}"
        if (kind := provider_types.read(name)) is None:
            found.append(f"{block.address}: no such {block.kind}")
        else:
            body = {argument: value for argument, value in block.body.items() if argument not in hcl.META}
            found += mistakes(kind, kind.root, body, block.address)
    assert found == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_attributes_of_references(folder: Path) -> None:
    unknown = []
    for reference in hcl.load(folder).references():
        kind, *rest = hcl.steps(reference)
        if kind == "data":
            kind, *rest = f"data_{rest[0]}", *rest[1:]
        if kind.startswith(("google_", "data_")):
            known = provider_types.read(kind)
            assert known
            # A key may follow the name; a reference to the whole resource ends there.
            if len(rest) > 1 and not known.attributes.keys() & set(rest[1:3]):
                unknown.append(reference)
    assert unknown == []


def test_a_wrong_name_is_found() -> None:
    kind = provider_types.read("google_compute_firewall")
    assert kind
    body = {"name": "x", "netwrok": "y", "allow": [{"protocol": "tcp", "prots": ["1"]}], "dynamic": {"deny": [{"content": [{}]}]}}
    assert sorted(mistakes(kind, kind.root, body, "f")) == [
        "f.allow.prots is unknown",
        "f.deny.protocol is missing",
        "f.network is missing",
        "f.netwrok is unknown",
    ]
    assert provider_types.read("google_compute_firewal") is None


def test_the_pinned_version_is_the_one_whose_names_are_checked() -> None:
    pinned = re.search(r"~> (\d+)\.(\d+)", (hcl.FOLDER / "versions.tf").read_text(encoding="utf-8"))
    assert pinned
    assert (int(pinned[1]), int(pinned[2])) == provider_types.version()
