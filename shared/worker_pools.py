"""Reads ``pools.yaml``: the workers of each pool, its bounds, and how its machines are started. Metrics and gateways read the same file."""

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

#: 100 pools with their models need less.
MAX_FILE_BYTES = 256 * 1024

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


class PoolsFile:
    """``POOLS_FILE``, which may change at any time. Its methods block."""

    def __init__(self, path: Path | None, *, runs_hooks: bool = False) -> None:
        """``runs_hooks``: this process calls the hooks, so their programs must exist here. Without a path there are no pools.

        Raises BadSettings.
        """
        self._path = path
        self._runs_hooks = runs_hooks
        self.pools: tuple[WorkerPool, ...] = ()
        #: Why the changed file is not used, for people; empty if it is.
        self.trouble = ""
        self._seen: tuple[int, int, int] | None = None
        self.refresh()
        if self.trouble:
            raise errors.BadSettings(self.trouble, hint="correct the file")

    def refresh(self) -> bool:
        """Read the file if it has changed. A bad file changes nothing but ``trouble``. Returns whether there is news of either kind."""
        if self._path is None:
            return False
        before = self.pools, self.trouble
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                with self._path.open("rb") as file:
                    content = file.read(MAX_FILE_BYTES + 1)
                self._seen = seen
                if len(content) > MAX_FILE_BYTES:
                    raise errors.BadSettings(f"POOLS_FILE: {self._path} has over {MAX_FILE_BYTES} bytes")
                self.pools, self.trouble = parse(content.decode(), runs_hooks=self._runs_hooks), ""
        except (OSError, UnicodeDecodeError) as error:
            self._seen, self.trouble = None, f"POOLS_FILE: {self._path} can't be read: {error}"
        except errors.BadSettings as error:
            self.trouble = error.message
        return before != (self.pools, self.trouble)


def parse(text: str, *, runs_hooks: bool = True) -> tuple[WorkerPool, ...]:
    """Raises BadSettings with the line of each mistake."""
    lines: dict[_Path, int] = {}
    pools: tuple[WorkerPool, ...] = ()
    try:
        if (node := yaml.compose(text, yaml.SafeLoader)) is not None:
            _collect_lines(node, (), lines)
        pools = msgspec.convert(yaml.safe_load(text), _PoolsFile).pools
        mistakes = [f"line {lines[path]}: {mistake}" for path, mistake in _mistakes(pools, runs_hooks=runs_hooks)]
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


def _mistakes(pools: Sequence[WorkerPool], *, runs_hooks: bool) -> Iterator[tuple[_Path, str]]:
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
            elif runs_hooks and pool.hook.command is not None and not _is_program(pool.hook.command[0]):
                yield (*here, "hook", "exec"), f"{pool.hook.command[0]} is not an executable file"


def _is_program(path: str) -> bool:
    return Path(path).is_file() and os.access(path, os.X_OK)
