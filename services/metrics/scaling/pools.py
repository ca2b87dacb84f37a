"""Reads ``pools.yaml``: the workers of each pool, its bounds, and how its machines are started."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta
from yaml.nodes import MappingNode, Node, SequenceNode

from shared import errors

_Text = Annotated[str, Meta(min_length=1, max_length=200)]
_Path = tuple[str | int, ...]


class PoolHook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: Annotated[tuple[_Text, ...], Meta(min_length=1, max_length=50)] | None = msgspec.field(default=None, name="exec")
    webhook: Annotated[str, Meta(pattern=r"^https?://\S+\Z", max_length=500)] | None = None


class WorkerPool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
    #: Either the models that its workers serve, or the labels that its workers have.
    models: Annotated[tuple[_Text, ...], Meta(max_length=100)] = ()
    labels: dict[_Text, _Text] = {}
    min: Annotated[int, Meta(ge=0, le=10_000)] = 1
    max: Annotated[int, Meta(ge=1, le=10_000)]
    #: From the order of a machine to its first answer.
    start_seconds: Annotated[float, Meta(ge=1, le=3600)] = 150.0
    #: Machines stop only after this long without a need for them.
    idle_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    #: The most machines to start at a time; None: no limit.
    max_step: Annotated[int, Meta(ge=1)] | None = None
    price_per_hour: Annotated[float, Meta(ge=0)] = 0.0
    #: For a UTC day; when it is spent, only ``min`` machines run. None: no limit.
    budget_per_day: Annotated[float, Meta(gt=0)] | None = None
    #: What starts and stops machines; None: the advice is only shown.
    hook: PoolHook | None = None


class _PoolsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pools: Annotated[tuple[WorkerPool, ...], Meta(max_length=100)]


def find(pools: Sequence[WorkerPool], name: str) -> WorkerPool:
    """Raises NotFound with the known names."""
    found = {pool.name: pool for pool in pools}
    if name not in found:
        raise errors.NotFound(f"there is no pool {name[:64]!r}", hint=f"known pools: {', '.join(found) or 'none'}")
    return found[name]


def parse(text: str) -> tuple[WorkerPool, ...]:
    """Raises BadSettings with the line of each mistake."""
    lines: dict[_Path, int] = {}
    pools: tuple[WorkerPool, ...] = ()
    try:
        if (node := yaml.compose(text, yaml.SafeLoader)) is not None:
            _collect_lines(node, (), lines)
        pools = msgspec.convert(yaml.safe_load(text), _PoolsFile).pools
        mistakes = [f"line {lines[path]}: {mistake}" for path, mistake in _mistakes(pools)]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        mistakes = [_located(message, lines) if isinstance(error, msgspec.ValidationError) else message]
    if mistakes:
        raise errors.BadSettings("POOLS_FILE: the file can't be used:\n  " + "\n  ".join(mistakes))
    return pools


def _collect_lines(node: Node, path: _Path, lines: dict[_Path, int]) -> None:
    """Raises ValueError for a key that is set twice."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, SequenceNode):
        for number, child in enumerate(node.value):
            _collect_lines(child, (*path, number), lines)
    elif isinstance(node, MappingNode):
        for key, child in node.value:
            below = (*path, str(key.value))
            if below in lines:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!s:.60} is set twice")
            lines[below] = key.start_mark.line + 1
            _collect_lines(child, below, lines)


def _located(message: str, lines: dict[_Path, int]) -> str:
    """Put the line in front of msgspec's message, which ends with the path."""
    found = re.findall(r"\.(\w+)|\[(\d+)\]", message.rpartition(" - at `")[2]) + re.findall(r"unknown field `(.*?)`()", message)
    path: _Path = tuple(name or int(number) for name, number in found)
    line = next((lines[path[:length]] for length in range(len(path), -1, -1) if path[:length] in lines), 1)
    return f"line {line}: {message}"


def _mistakes(pools: Sequence[WorkerPool]) -> Iterator[tuple[_Path, str]]:
    names: set[str] = set()
    pool_of: dict[str, str] = {}
    for number, pool in enumerate(pools):
        here: _Path = ("pools", number)
        if pool.name in names:
            yield (*here, "name"), f"there are two pools {pool.name}"
        names.add(pool.name)
        if pool.min > pool.max:
            yield (*here, "min"), f"min {pool.min} is more than max {pool.max}"
        if bool(pool.models) == bool(pool.labels):
            yield here, f"pool {pool.name} needs either models or labels"
        for place, model in enumerate(pool.models):
            if model in pool_of:
                yield (*here, "models", place), f"model {model} is already in pool {pool_of[model]}"
            pool_of.setdefault(model, pool.name)
        if pool.hook is not None:
            if (pool.hook.command is None) == (pool.hook.webhook is None):
                yield (*here, "hook"), "a hook needs either exec or webhook"
            elif pool.hook.command is not None and not (Path(pool.hook.command[0]).is_file() and os.access(pool.hook.command[0], os.X_OK)):
                yield (*here, "hook", "exec"), f"{pool.hook.command[0]} is not an executable file"
