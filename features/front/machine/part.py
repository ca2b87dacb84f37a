"""What `aicli worker` does for the servers of a joined machine: looks, asks, keeps the choice, and gets a key for each."""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import msgspec

from cli import interrupts
from cli.machines import terminal_question
from cli.machines.companions import Companion, JoinedMachine, MachineAddition, MachinePart
from features.front.machine import choice
from features.front.rules import sharing
from features.front.rules.local_servers import PROGRAMS, LocalServer, SharedServer
from features.front.rules.sharing import ServersFile
from shared import errors
from shared.identity import private_file

if TYPE_CHECKING:
    from cli.machines.join import Folder
    from shared.node.membership_file import MembershipFile

_OPEN_SECONDS = 0.1
_LOOK_SECONDS = 30.0
_PROGRAM = "features.front.worker.look"
_MAX_KEY_BYTES = 4096
#: Backends with which the machine's own worker serves such a server already.
_OF_SERVERS = ("ollama", "openai", "http")


def find(machine: JoinedMachine, given: Mapping[str, Any]) -> MachineAddition:
    """Raises BadRequest for what --share names wrongly, and what joining raises."""
    looks = not given["no_detect"] and machine.environment.get("INFERENCE_BACKEND") not in _OF_SERVERS
    chosen, found = decide(machine.folder.root, machine.environment, {**given, "no_detect": not looks}, machine.report)
    if not chosen.servers and not machine.has_models and importlib.util.find_spec("llama_cpp") is None:
        raise _nothing_to_serve(found)
    settings = {"FRONT_CHOICE_FILE": str(sharing.choice_file(machine.folder.root))} if looks else {}
    companions = [
        _companion(machine, server, settings if number == 0 and not machine.has_models else None)
        for number, server in enumerate(chosen.servers)
    ]
    return MachineAddition(companions=companions, settings=settings)


def decide(
    root: Path,
    environment: Mapping[str, str],
    given: Mapping[str, Any],
    report: Callable[[str], None],
    *,
    served: Collection[int] = (),
    way: str = sharing.BY_WORKER,
) -> tuple[ServersFile, list[LocalServer]]:
    """Return what is shared after a look at what runs here, and an answer of the person at the terminal; and what was found. Other workers
    serve the ports ``served``. Raises BadRequest."""
    path = sharing.choice_file(root)
    kept = sharing.read(path)
    for text in given["server_key_file"]:
        _keep_key(root, text)
    looked = () if given["no_detect"] and not given["share"] else _look(root, environment)
    found = [server for server in looked if urlsplit(server.url).port not in served]
    chosen = _choose(given["share"], found, _without(kept, given["unshare"]))
    if chosen != kept:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        private_file.replace(path, msgspec.json.encode(chosen))
    for server in found:
        # Who answered the question has read it.
        if given["share"] and server.is_open_to_others and server.kind in {each.kind for each in chosen.servers}:
            report(choice.warning_of(server))
    for line in sharing.describe_new(sharing.find_new(found, chosen), chosen, way):
        report(line)
    return chosen, found


def _nothing_to_serve(found: Sequence[LocalServer]) -> errors.BadSettings:
    """Return what to do on a machine without an engine, where a model of ours can't run."""
    if any(server.models for server in found):
        names = ", ".join(server.kind for server in found if server.models)
        return errors.BadSettings(f"this worker shares nothing yet; servers here: {names}", hint="to share them: aicli worker --share all")
    titles = " or ".join(dict.fromkeys(program.title for program in PROGRAMS))
    why = "this worker has no engine, and found no server with models on this machine"
    return errors.BadSettings(why, hint=f"start {titles}; then: aicli worker --share all")


def _choose(words: Sequence[str], found: Sequence[LocalServer], kept: ServersFile) -> ServersFile:
    if words:
        return _with(kept, found, choice.of_words(words, found), declined=())
    known = {*kept.declined, *(server.kind for server in kept.servers)}
    new = [server for server in found if server.kind not in known]
    if not new:
        return kept
    with terminal_question.terminal() as terminal:
        answer = None if terminal is None else _ask(terminal, new)
    if answer is None:
        return kept
    taken = {one.kind for one in answer}
    return _with(kept, found, answer, [each.kind for each in new if (each.models or each.needs_key) and each.kind not in taken])


def _without(kept: ServersFile, words: Sequence[str]) -> ServersFile:
    """Raises BadRequest."""
    left = tuple(choice.without(kept.servers, words))
    # Its owner doesn't want to be asked for it.
    gone = (each.kind for each in kept.servers if each.kind not in {one.kind for one in left})
    return msgspec.structs.replace(kept, servers=left, declined=(*kept.declined, *gone)) if words else kept


def _with(kept: ServersFile, found: Sequence[LocalServer], more: Sequence[SharedServer], declined: Sequence[str]) -> ServersFile:
    taken = {one.kind for one in more}
    seen = {server.kind: tuple(model.name for model in server.models) for server in found if server.kind in {*taken, *declined}}
    return ServersFile(
        tuple(choice.merged(kept.servers, more)),
        (*(kind for kind in kept.declined if kind not in taken), *declined),
        {**kept.seen, **seen},
    )


def _ask(terminal: int, servers: Sequence[LocalServer]) -> list[SharedServer] | None:
    """Return None without an answer."""
    os.write(terminal, "".join(f"{line}\n" for line in choice.text_of(servers)).encode())
    wanted: dict[str, list[str]] = {server.kind: [] for server in servers}
    total = sum(len(choice.offered_models(server)) for server in servers)
    if total:
        shares = terminal_question.ask(
            terminal, f"Share {'it' if total == 1 else f'these {total} models'} with the mesh? [Y/n] ", default=True
        )
        if shares is None:
            return None
        if shares:
            wanted = {server.kind: [model.name for model in choice.offered_models(server)] for server in servers}
    for server in servers:
        for model in choice.asked_models(server):
            if terminal_question.ask(terminal, choice.question_about(model), default=False):
                wanted[server.kind].append(model.name)
    return [one for server in servers if (one := choice.shared(server, wanted[server.kind])) is not None]


def _keep_key(root: Path, text: str) -> None:
    """Copy the server's key of ``KIND=FILE``: the user of a service may not read the file. Raises click.UsageError and BadSettings."""
    kind, equals, path = text.partition("=")
    if not (equals and path and kind in {program.kind for program in PROGRAMS}):
        kinds = ", ".join(program.kind for program in PROGRAMS)
        raise click.UsageError(f"--server-key-file {text!r} is not KIND=FILE; kinds: {kinds}")
    try:
        body = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise errors.BadSettings(f"--server-key-file {kind}: cannot read {path}: {error.strerror}") from error
    if not body.strip() or len(body) > _MAX_KEY_BYTES:
        raise errors.BadSettings(f"--server-key-file {kind}: {path} has no key of at most {_MAX_KEY_BYTES:,} bytes")
    copy = sharing.key_file(root, kind)
    copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_file.replace(copy, body)


def _look(root: Path, environment: Mapping[str, str]) -> tuple[LocalServer, ...]:
    """Return the servers on loopback; at once if nothing listens where they usually do."""
    if not any(map(_is_open, {program.port for program in PROGRAMS})):
        return ()
    checkout = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(filter(None, [str(checkout), environment.get("PYTHONPATH", "")]))
    command = (sys.executable, "-m", _PROGRAM, str(root))
    given = {**environment, "PYTHONPATH": path}
    try:
        looked = subprocess.run(  # noqa: S603
            command, env=given, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_LOOK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return ()
    return msgspec.json.decode(looked.stdout, type=tuple[LocalServer, ...]) if looked.stdout else ()


def _is_open(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_OPEN_SECONDS):
            return True
    except OSError:
        return False


def _companion(machine: JoinedMachine, server: SharedServer, settings_of_first: Mapping[str, str] | None) -> Companion:
    """Return the worker of a server. The first one of a machine without models has the machine's own key."""
    folder = machine.folder.companion(server.kind)
    folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder.root / "server.json"
    private_file.replace(file, msgspec.json.encode(sharing.with_key(server, machine.folder.root)))
    settings = {"INFERENCE_BACKEND": "front", "FRONT_SERVER_FILE": str(file), "MODELS": "", "MODELS_PULL": ""}
    if settings_of_first is not None:
        return Companion(name=server.kind, folder=machine.folder, kept=machine.kept, settings={**settings, **settings_of_first})
    return Companion(name=server.kind, folder=folder, kept=_membership(machine, server, folder), settings=settings)


def _membership(machine: JoinedMachine, server: SharedServer, folder: "Folder") -> "MembershipFile":
    from shared.identity import certificates, node_keys
    from shared.node import enrollment, membership_file

    own, kept = node_keys.load(machine.folder.key), folder.kept()
    if kept is not None and dict(certificates.read(kept.certificate).labels).get(certificates.MACHINE_LABEL) != own.id:
        # The machine joined again, with another key. What its former key vouched for was revoked with that.
        folder.key.unlink()
    elif kept is not None and kept.authorities == machine.kept.authorities:
        return kept
    private_file.create(folder.key, node_keys.new_seed)
    name = f"{socket.gethostname()} {server.kind}"
    kept = interrupts.run(enrollment.add_sibling(machine.kept, own, node_keys.load(folder.key), name, machine.report))
    membership_file.save(folder.membership, kept)
    return kept


OPTIONS = (
    click.Option(
        ["--share"], multiple=True, metavar="NAME",
        help="Share the models of a server on this machine: all, ollama, or ollama/qwen3:8b. Can be repeated.",
    ),
    click.Option(
        ["--unshare"], multiple=True, metavar="NAME", help="Share it no longer: all, ollama, or ollama/qwen3:8b. Can be repeated.",
    ),
    click.Option(
        ["--server-key-file"], multiple=True, metavar="KIND=FILE",
        help="The key of a server on this machine that asks for one, such as vllm=FILE (with --share).",
    ),
    click.Option(["--no-detect"], is_flag=True, help="Don't look for Ollama, LM Studio, vLLM and other servers on this machine."),
)  # fmt: skip
PART = MachinePart(options=OPTIONS, find=find)
