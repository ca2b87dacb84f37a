"""Runs the program that changes the store of the worker on this machine. Its wheel is the worker's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cli.cli_context import CliContext
from shared import config, errors
from shared.api.inference import ModelSources, PullProgress, StoreLine, StoreRequest, StoreResult
from shared.model_sources import SourceSettings


def find_store(here: CliContext, chosen: str | None) -> tuple[str, str, ModelSources]:
    """Return the folder, quota and sources of the store of this machine's worker. Raises BadSettings if there is none."""
    from cli.machines import join
    from stack import settings, stack_home

    stack = stack_home.locate(here.environment)
    recorded = settings.read_recorded(stack) if stack.nats.is_dir() else {}
    environment = {**recorded, **here.environment}
    given = config.load(SourceSettings, environment)
    quota = environment.get("MODEL_STORE_QUOTA") or ""
    sources = ModelSources(hub_url=given.hub_url, hub_token=given.hub_token, mirrors=given.mirrors)
    key, joined = here.environment.get("NODE_KEY_FILE"), join.locate(here.environment, None, here.folder).membership
    if named := chosen or here.environment.get("MODEL_STORE"):
        return str(here.path(named)), quota, sources
    if key:
        return str(Path(here.environment.get("MESH_STATE_FILE") or key).with_name("models")), quota, sources
    if stack.nats.is_dir():
        return recorded.get("MODEL_STORE") or str(stack.models), quota, sources
    if joined.is_file():
        return str(joined.with_name("models")), quota, sources
    raise errors.BadSettings("there is no worker on this machine", hint="start one with aicli worker, or name a folder with --store")


def run(here: CliContext, chosen: str | None, show: Callable[[PullProgress], None], **request: Any) -> StoreResult:
    """Run the program, and call ``show`` with its progress. Raises the error that it reports."""
    folder, quota, sources = find_store(here, chosen)
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), here.environment.get("PYTHONPATH", "")]))
    result: StoreResult | None = None
    with subprocess.Popen(
        [sys.executable, "-m", "services.inference.models.store_program"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**here.environment, "PYTHONPATH": path},
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        with program.stdin:
            program.stdin.write(msgspec.json.encode(StoreRequest(folder=folder, quota=quota, sources=sources, **request)))
        for line in program.stdout:
            reported = msgspec.json.decode(line, type=StoreLine)
            if reported.progress is not None:
                show(reported.progress)
            result = reported.result
    if result is None:
        raise errors.Internal(f"the program that changes the store ended with status {program.returncode}")
    if result.problem is not None:
        raise errors.from_problem(result.problem)
    return result
