"""What a machine's own servers add to its stack: a worker for each that its owner shares with `make up`."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from features.front.machine import part as machine
from features.front.rules import sharing
from features.front.rules.local_servers import SharedServer
from features.remote_servers.settings import ServerStackSettings
from shared.identity import private_file
from shared.types import Role
from stack import settings, stack_plan
from stack.features import StackPart, StackSite
from stack.servers import nats_server
from stack.servers.program import Program
from stack.stack_home import StackHome

_PORT = re.compile(r":(\d{1,5})\b")
_MAX_UPSTREAMS_BYTES = 256 * 1024


def _ask(home: StackHome, given: Mapping[str, Any], report: Callable[[str], None]) -> None:
    """Raises BadRequest and BadSettings."""
    wanted = settings.load(settings.merge(settings.read_recorded(home), os.environ, Path.cwd()))
    # A static list of NATS users takes no more workers.
    if wanted.nats_admission != "users" and (given["share"] or given["unshare"] or sys.stdin.isatty()):
        served = frozenset(map(int, _PORT.findall("\n".join(_urls(wanted.of(ServerStackSettings))))))
        machine.decide(_folder(home), os.environ, given, report, served=served, way=sharing.BY_STACK)


def _urls(own: ServerStackSettings) -> Iterator[str]:
    """Yield texts with the URLs of servers that have workers already."""
    yield own.ollama_url or ""
    yield own.openai_url or ""
    if own.openai_upstreams is not None:
        # The worker reports what is wrong with the file.
        with suppress(OSError), own.openai_upstreams.open(encoding="utf-8", errors="replace") as file:
            yield file.read(_MAX_UPSTREAMS_BYTES)


def _programs(site: StackSite) -> list[Program]:
    """Raises BadSettings."""
    servers = sharing.read(sharing.choice_file(_folder(site.home))).servers
    return [_worker(site, server, is_first=number == 0) for number, server in enumerate(servers)]


def _worker(site: StackSite, server: SharedServer, *, is_first: bool) -> Program:
    name, folder = f"front-{server.kind}", _folder(site.home)
    file = folder / f"{server.kind}.json"
    private_file.replace(file, msgspec.json.encode(sharing.with_key(server, folder)))
    chosen = msgspec.structs.replace(site.settings, backend="front")
    environment = {
        **site.machine,
        **stack_plan.service_environment(site.home, chosen, site.recorded, "inference"),
        "NODE_KEY_FILE": str(nats_server.add_node(site.home, chosen.mesh, name, Role.WORKER)),
        "INFERENCE_BACKEND": "front",
        "INFERENCE_SERVICE_PORT": "0",
        "FRONT_SERVER_FILE": str(file),
    }
    # One of them tells what is new.
    environment |= {"FRONT_CHOICE_FILE": str(sharing.choice_file(folder))} if is_first else {}
    return Program(
        name=name,
        command=(sys.executable, "-m", "services.inference"),
        environment=environment,
        stage=1,
        # As the stack's other workers.
        grace_seconds=45.0,
        hopeless_status=2,
    )


def _folder(home: StackHome) -> Path:
    return home.root / "front"


PART = StackPart(up_options=machine.OPTIONS, before_start=_ask, programs=_programs)
