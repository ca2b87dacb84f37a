"""Decides which machine has which version of a model. Pure.

A machine that has a version keeps it: nothing moves only to balance. Machines are asked one by one; one that refuses, because it has no
room, is passed over until its refusal is forgotten.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from shared.models import version_names
from shared.types import ModelName, NodeId


class Held(IntEnum):
    """What a machine has of a version."""

    NOTHING = 0
    #: It was ordered, or is on its way.
    COMING = 1
    #: On its disk.
    STORED = 2
    #: In an engine's memory.
    LOADED = 3


@dataclass(frozen=True, slots=True)
class Machine:
    node: NodeId
    labels: Mapping[str, str]
    #: Whether its owner lets administrators put models on it.
    accepts: bool
    #: By served name; what is missing is NOTHING.
    held: Mapping[ModelName, Held]
    #: What the mesh has put there, or has ordered. The rest is its owner's.
    assigned: Collection[ModelName]
    #: All models that it serves, those of its owner included.
    models: int
    #: What people removed from it and don't want there again, without versions.
    refused: Collection[ModelName] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One version that a deployment wants."""

    name: ModelName
    #: None: on each machine that the other fields choose.
    copies: int | None
    labels: Mapping[str, str]
    #: Beginnings of ids; empty: any.
    nodes: tuple[str, ...]
    loads: bool
    #: It stays where it is, and goes to no other machine.
    is_spare: bool = False


class Step(StrEnum):
    FETCH = "fetch"
    LOAD = "load"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Action:
    step: Step
    node: NodeId
    name: ModelName


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a version is, or will be, and why not elsewhere."""

    wanted: Wanted
    nodes: tuple[NodeId, ...]
    #: How many more machines it needs.
    short: int
    #: Why a machine that was chosen by labels and ids has no copy, while more are needed.
    reasons: Mapping[NodeId, str]


#: Why a machine refused a version.
Refusals = Mapping[tuple[NodeId, ModelName], str]
NO_CONSENT = "ask its owner: administrators may not put models on it"
REMOVED = "ask its owner: the model was removed there"


def assign(wanted: Wanted, machines: Sequence[Machine], refusals: Refusals) -> Assignment:
    chosen = [each for each in machines if _matches(wanted, each)]
    most = len(chosen) if wanted.copies is None else wanted.copies
    kept = [each for each in chosen if each.held.get(wanted.name, Held.NOTHING)]
    kept.sort(key=lambda each: (-each.held[wanted.name], each.node))
    if wanted.is_spare:
        return Assignment(wanted, tuple(each.node for each in kept[:most]), 0, {})
    refused = {each.node: why for each in chosen if (why := refusals.get((each.node, wanted.name)))}
    refused |= {each.node: REMOVED if each.accepts else NO_CONSENT for each in chosen if not _may_hold(each, wanted)}
    fresh = [each for each in chosen if not each.held.get(wanted.name) and each.node not in refused]
    fresh.sort(key=lambda each: (each.models, each.node))
    nodes = tuple(each.node for each in (*kept, *fresh)[:most])
    short = max(0, most - len(nodes))
    reasons = {each.node: refused[each.node] for each in chosen if each.node not in nodes} if short else {}
    return Assignment(wanted, nodes, short, reasons)


def plan(assignments: Collection[Assignment], machines: Sequence[Machine]) -> tuple[Action, ...]:
    """Return what is left to do."""
    loaded = {each.wanted.name for each in assignments if each.wanted.loads}
    places = {(node, each.wanted.name) for each in assignments for node in each.nodes}
    held = {machine.node: machine.held for machine in machines}
    actions = list[Action]()
    for node, name in sorted(places):
        match held[node].get(name, Held.NOTHING):
            case Held.NOTHING:
                actions.append(Action(Step.FETCH, node, name))
            case Held.STORED if name in loaded:
                actions.append(Action(Step.LOAD, node, name))
    actions += [
        Action(Step.REMOVE, machine.node, name) for machine in machines for name in machine.assigned if (machine.node, name) not in places
    ]
    return tuple(actions)


def _may_hold(machine: Machine, wanted: Wanted) -> bool:
    return machine.accepts and version_names.strip_version(wanted.name) not in machine.refused


def _matches(wanted: Wanted, machine: Machine) -> bool:
    by_id = not wanted.nodes or any(machine.node.startswith(each) for each in wanted.nodes)
    return by_id and wanted.labels.items() <= machine.labels.items()
