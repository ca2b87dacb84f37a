"""Other worker processes of a joined machine, beside its first one, as features add them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from shared import features

if TYPE_CHECKING:
    from cli.machines.join import Folder
    from shared.node.membership_file import MembershipFile


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedMachine:
    folder: "Folder"
    kept: "MembershipFile"
    #: The shell's, with the settings of options.
    environment: Mapping[str, str]
    #: It has models of its own, or is told to pull some.
    has_models: bool
    report: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A worker process with a key of its own."""

    name: str
    folder: "Folder"
    kept: "MembershipFile"
    #: Settings, which precede the machine's.
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineAddition:
    #: The first one replaces a machine's own worker if that has no models.
    companions: Sequence[Companion] = ()
    #: Of the machine's own worker, if it runs.
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePart:
    """What a feature adds to `aicli worker` on a joined machine."""

    options: tuple[click.Option, ...] = ()
    #: With the values of its options.
    find: Callable[[JoinedMachine, Mapping[str, Any]], MachineAddition]


@cache
def parts() -> tuple[MachinePart, ...]:
    return tuple(features.parts("machine.part", MachinePart).values())
