"""`aicli worker`: run one more worker on this machine, in the foreground.

It joins a mesh with a ticket and later uses its state folder, or it gets a separate node in the stack of this machine. This process then
becomes the worker, so Ctrl-C, exit status and output are the worker's own. A lock on `run/local-worker-N.lock`, held as long as the process
lives, keeps two workers of a stack from using the same node.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from cli import option_values
from cli.cli_context import CliContext
from cli.lazy_group import LazyGroup
from cli.machines import companions
from cli.output import printing
from shared import errors, features, model_folder
from shared.types import Role

if TYPE_CHECKING:
    from cli.machines.join import Folder
    from shared.node.membership_file import MembershipFile
    from stack.stack_home import StackHome

#: More workers on one machine are probably a loop in a script.
_MAX_WORKERS = 64
#: The worker's backends; a test compares them with services.inference.
BACKENDS = ("llama", *features.backends(), "echo")
#: Settings that say which models a worker serves.
_MODEL_SETTINGS = {"INFERENCE_BACKEND", "MODELS", "MODELS_DIR", "MODELS_YAML", "MODELS_PULL"}
#: Status sentences, and only warnings and errors of the log.
_FOR_PEOPLE = {"WORKER_STATUS": "plain", "LOG_FORMAT": "text", "LOG_LEVEL": "warning"}
COMMANDS = {
    "install": ("cli.machines.worker_unit:install", "Run this machine's worker as a systemd service, now and after each start."),
    "pause": ("cli.machines.pause:pause", "Pause this machine's worker: it gets no new requests, running ones finish."),
    "resume": ("cli.machines.pause:resume", "Resume this machine's worker."),
    "status": ("cli.machines.pause:status", "Show the status of this machine's worker."),
}


@click.group(cls=LazyGroup, places=COMMANDS, invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@click.option(
    "--join", "ticket", metavar="TICKET", help="Join a mesh with this ticket: the ticket itself, @FILE, or - for stdin. Only needed once."
)
@click.option("--models", "models_folder", metavar="DIR", help="Serve every .gguf file in this folder. The file name is the model name.")
@click.option("--model", "models", multiple=True, metavar="NAME=PATH", help="Serve a GGUF file under this name. Can be repeated.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Backend that runs the models. Default: INFERENCE_BACKEND, or llama.")
@click.option(
    "--label",
    "--labels",
    "labels",
    callback=option_values.read_labels,
    multiple=True,
    metavar="KEY=VALUE,…",
    help="Labels of this machine, such as region=eu (with --join).",
)
@click.option("--name", metavar="NAME", help="Name of this machine (with --join). Default: its hostname.")
@click.option(
    "--no-serve", is_flag=True, help="Join, keep the choices of other options, and exit, for example before a service starts the worker."
)
@click.option(
    "--state", metavar="DIR", help="State folder of a joined worker. Default: $AIMESH_HOME/worker, or $XDG_STATE_HOME/aimesh/worker."
)
@click.option("--slots", type=click.IntRange(1, 256), help="Number of requests that each model runs concurrently.")
@click.option("--port", type=click.IntRange(1, 65535), help="Loopback port of its HTTP endpoints. Default: a free port.")
@click.option("--plan", metavar="MODEL", help="Print how this machine would load a model or .gguf file, with reasons, and exit.")
@click.pass_context
@click.pass_obj
def worker(
    here: CliContext,
    context: click.Context,
    /,
    *,
    ticket: str | None,
    models_folder: str | None,
    models: tuple[str, ...],
    backend: str | None,
    labels: dict[str, str],
    name: str | None,
    no_serve: bool,
    state: str | None,
    slots: int | None,
    port: int | None,
    plan: str | None,
    **of_features: object,
) -> None:
    """Run a worker on this machine, in the foreground.

    With --join, it joins the mesh of another machine. This works behind any NAT and needs no open port. Later starts need no ticket. If
    it never joined a mesh, it serves the stack on this machine.

    Set OLLAMA_URL, OPENAI_BASE_URL and OPENAI_API_KEY_FILE to configure other backends. With NODE_KEY_FILE, the worker connects to
    NATS_URL as that node and needs no stack on this machine.
    """
    if context.invoked_subcommand:
        return
    if (labels or name) and not ticket:
        raise click.UsageError("--label and --name require --join")
    from cli.machines import join

    options = _read_options(here.folder, backend, [*_in_folder(here.folder, models_folder), *models], slots)
    if plan:
        file = here.folder / Path(plan).expanduser()
        _become({**here.environment, **options}, "services.inference.backends.plan_program", str(file) if file.is_file() else plan)
    folder = _find_folder(here, state, joining=ticket is not None)
    if no_serve and folder is None:
        raise click.UsageError("--no-serve requires --join, or a machine that has joined")
    if folder is None:
        environment = plan_environment(here.environment, options, for_people=sys.stdout.isatty())
    else:
        with _explained_full_disk(folder):
            kept = _member(here, folder, ticket, labels, name)
            added = _find_companions(here, options, folder, kept, of_features)
            if not added.companions and (ticket is not None or not folder.declined.exists()):
                kept = _offer_model(here, options, folder, kept)
            join.give_to_owner(folder)
        if no_serve:
            return
        environment = {**joined_environment(here.environment, options, folder, kept), **added.settings}
        if added.companions:
            _supervise(here, environment, options, added.companions, folder, port=port)
    from stack import ports

    environment["INFERENCE_SERVICE_PORT"] = str(port or ports.find_free())
    _become(environment)


def _find_companions(
    here: CliContext, options: Mapping[str, str], folder: "Folder", kept: "MembershipFile", given: Mapping[str, object]
) -> companions.MachineAddition:
    def report(text: str) -> None:
        click.echo(printing.printable(text))

    machine = companions.JoinedMachine(
        folder=folder,
        kept=kept,
        environment={**here.environment, **options},
        has_models=bool(kept.model) or _names_models({**here.environment, **options}),
        report=report,
    )
    found = [part.find(machine, given) for part in companions.parts()]
    return companions.MachineAddition(
        companions=[companion for each in found for companion in each.companions],
        settings={name: value for each in found for name, value in each.settings.items()},
    )


def _supervise(
    here: CliContext,
    environment: Mapping[str, str],
    options: Mapping[str, str],
    others: Sequence[companions.Companion],
    folder: "Folder",
    *,
    port: int | None,
) -> NoReturn:
    """Run the machine's worker and its companions, the one with the machine's key first."""
    from stack import ports

    programs = {} if any(each.folder == folder for each in others) else {"worker": _program(environment)}
    for each in others:
        own = joined_environment(here.environment, {**options, **each.settings}, each.folder, each.kept)
        programs[each.name] = _program(own)
    for number, (_, given) in enumerate(programs.values()):
        given["INFERENCE_SERVICE_PORT"] = str(port if port and not number else ports.find_free())
        # The machine is paused whole.
        given["WORKER_PAUSE_FILE"] = str(folder.paused)
    sys.stdout.flush()
    if sys.platform == "win32":
        if len(programs) > 1:
            raise errors.BadSettings("on Windows, a worker shares one server", hint="run a worker for each: --state FOLDER --share NAME")
        _replace_process(*next(iter(programs.values())))
    from cli.machines import supervisor

    sys.exit(supervisor.supervise(programs))


worker.params.extend(option for part in companions.parts() for option in part.options)


def _read_options(folder: Path, backend: str | None, models: Sequence[str], slots: int | None) -> dict[str, str]:
    options: dict[str, str] = {}
    if backend:
        options["INFERENCE_BACKEND"] = backend
    if models:
        checked = [_checked_model(text, folder) for text in models]
        names = [text.partition("=")[0] for text in checked]
        if twice := {name for name in names if names.count(name) > 1}:
            raise click.UsageError(f"two models are named {', '.join(sorted(twice))}")
        options["MODELS"] = ",".join(checked)
    if slots:
        options["ENGINE_SLOTS"] = str(slots)
    return options


def _in_folder(here: Path, folder: str | None) -> list[str]:
    return [] if folder is None else [f"{name}={path}" for name, path in find_models(here / Path(folder).expanduser()).items()]


def find_models(folder: Path) -> dict[str, Path]:
    """Return every model with its name. Raises BadSettings if there is none, or an invalid name."""
    if not folder.is_dir():
        raise errors.BadSettings(f"there is no folder {folder}", hint="set --models to the folder that contains your .gguf files")
    found = model_folder.find(folder)
    for clash in found.clashes:
        raise errors.BadSettings(f"{clash.second} and {clash.first} would both be served as {clash.name}", hint="rename one of them")
    for name, path in found.models.items():
        if "=" in name or "," in str(path):
            raise errors.BadSettings(
                f"{path}: model names can't contain = and paths can't contain commas", hint="rename it, or create a link to it"
            )
    if not found.models:
        raise errors.BadSettings(f"no .gguf files in {folder}", hint="put a model there, or use --model NAME=PATH")
    return found.models


def _find_folder(here: CliContext, state: str | None, *, joining: bool) -> "Folder | None":
    """Return the state folder to use; None to work for the stack, or as the node of NODE_KEY_FILE."""
    from cli.machines import join
    from stack import stack_home

    folder = join.locate(here.environment, state, here.folder)
    if joining or state is not None:
        return folder
    if here.environment.get("NODE_KEY_FILE") or stack_home.locate(here.environment).nats.is_dir():
        return None
    return folder if folder.membership.is_file() else None


def _member(here: CliContext, folder: "Folder", ticket: str | None, labels: Mapping[str, str], name: str | None) -> "MembershipFile":
    """Return this machine's membership, after joining if a ticket is given. From here on this process holds the folder."""
    import platform

    from cli import interrupts
    from cli.machines import join
    from shared.node import enrollment

    def report(text: str) -> None:
        click.echo(printing.printable(text))

    if ticket is not None:
        read = join.read_ticket(ticket, here.folder)
        join.prepare(folder)
        join.claim(folder)
        return interrupts.run(join.join(folder, read, enrollment.EnrollingNode(Role.WORKER, name or platform.node(), labels), report))
    kept = folder.kept()
    if kept is None:
        raise errors.BadSettings(f"no worker has joined a mesh using {folder.root}", hint="to join a mesh: aicli worker --join TICKET")
    join.claim(folder)
    return interrupts.run(join.finish(folder, kept, report))


def _offer_model(here: CliContext, options: Mapping[str, str], folder: "Folder", kept: "MembershipFile") -> "MembershipFile":
    """Return the membership with the model that the person at the terminal takes, if this machine has none."""
    from cli.machines import model_offer
    from shared.node import membership_file

    if kept.model or _names_models({**here.environment, **options}):
        return kept
    command, environment = _program(joined_environment(here.environment, options, folder, kept), "services.inference.backends.model_offer")
    answer = model_offer.take(command, environment)
    if answer is model_offer.Answer.NO:
        folder.declined.touch(mode=0o600)
    if isinstance(answer, model_offer.Answer):
        return kept
    kept = msgspec.structs.replace(kept, model=answer)
    membership_file.save(folder.membership, kept)
    return kept


@contextmanager
def _explained_full_disk(folder: "Folder") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        hint = "free some space, or choose a folder on another disk with --state"
        raise errors.BadSettings(f"the disk of {folder.root} is full", hint=hint) from error


def joined_environment(outside: Mapping[str, str], options: Mapping[str, str], folder: "Folder", kept: "MembershipFile") -> dict[str, str]:
    """Return the environment of a joined worker: options override the environment; mesh and node come from the folder."""
    fixed = {
        "MESH_NAME": kept.mesh,
        "NATS_URL": ",".join(kept.nats) or "none",
        "NODE_KEY_FILE": str(folder.key),
        "MESH_STATE_FILE": str(folder.membership),
        "WORKER_PAUSE_FILE": str(folder.paused),
        "WORKER_REPORT_FILE": str(folder.status),
    }
    # NAME_FILE would override NAME.
    inherited = {name: value for name, value in outside.items() if name.removesuffix("_FILE") not in {*fixed, *options}}
    return {**_FOR_PEOPLE, **_chosen_by_ticket(kept, {**outside, **options}), **inherited, **options, **fixed}


def _chosen_by_ticket(kept: "MembershipFile", given: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that the ticket's creator chose. Those of the machine's owner precede them."""
    if not kept.model or _names_models(given):
        return {}
    return {"MODELS": f"{Path(kept.model).stem}={kept.model}"} if kept.model.startswith("/") else {"MODELS_PULL": kept.model}


def _names_models(given: Mapping[str, str]) -> bool:
    return bool(_MODEL_SETTINGS & {name.removesuffix("_FILE") for name in given})


def plan_environment(outside: Mapping[str, str], options: Mapping[str, str], *, for_people: bool = False) -> dict[str, str]:
    """Return the environment of a worker: options override the environment, which overrides the stack's settings."""
    environment = {**outside, **options}
    if for_people:
        environment = {**_FOR_PEOPLE, **environment}
    return environment if outside.get("NODE_KEY_FILE") else _in_stack(environment)


def _checked_model(text: str, folder: Path) -> str:
    """Return ``NAME=PATH`` with an absolute path. Raises click.UsageError for what the worker cannot use."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise click.UsageError(f"--model {text!r} is not NAME=PATH")
    file = (folder / Path(path).expanduser()).absolute()
    if not file.is_file():
        raise click.UsageError(f"--model {name}: there is no file {file}")
    if "," in text:
        raise click.UsageError(f"--model {name}: paths can't contain commas, which separate models; create a link instead")
    return f"{name}={file}"


def _in_stack(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker of this machine's stack, with its own node."""
    from stack import settings, stack_home, stack_plan
    from stack.servers import nats_server

    stack = stack_home.locate(environment)
    if not stack.nats.is_dir():
        hint = "run `make up` first, or join another machine's mesh: aicli worker --join TICKET"
        raise errors.BadSettings(f"there is no stack in {stack.root}", hint=hint)
    recorded = settings.read_recorded(stack)
    chosen = settings.load(recorded)
    if chosen.nats_admission == "users":
        raise errors.BadSettings(
            "this stack's NATS server has a static list of users, so aicli can't add a node to it",
            hint="run aicli stack add-node NAME worker, reload the NATS users, and set NODE_KEY_FILE to the new key",
        )
    key_file = nats_server.add_node(stack, chosen.mesh, _claim_name(stack), Role.WORKER)
    own = stack_plan.service_environment(stack, chosen, recorded, "inference") | {"NODE_KEY_FILE": str(key_file)}
    # The user's environment overrides the settings of the stack's own worker, also if one has NAME and the other NAME_FILE. The mesh
    # is always the stack's.
    inherited = {name: value for name, value in own.items() if name.removesuffix("_FILE") not in environment}
    mesh = {"MESH_NAME": chosen.mesh, "NATS_URL": stack_plan.nats_url(chosen), "NODE_KEY_FILE": str(key_file)}
    return {**inherited, **environment, **mesh}


def _claim_name(stack: "StackHome") -> str:
    """Return the first name that no running worker has."""
    from cli.machines import join

    for number in range(1, _MAX_WORKERS + 1):
        name = f"local-worker-{number}"
        if join.lock_inherited(stack.run / f"{name}.lock") is not None:
            return name
    raise errors.Overloaded(f"{_MAX_WORKERS} workers already run on this machine", hint="stop one, or increase its --slots")


def _program(environment: Mapping[str, str], *program: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of a module of the worker."""
    # A shell that starts the stack has those of the stack's other workers. A worker may refuse what isn't for it.
    backend = environment.get("INFERENCE_BACKEND")
    others = {name for each in features.backends().values() if each.name != backend for name in each.variables}
    environment = {name: value for name, value in environment.items() if name.removesuffix("_FILE") not in others}
    command = [sys.executable, "-m", *(program or ("services.inference",))]
    checkout = Path(__file__).resolve().parents[2]
    # A checkout need not be installed. PYTHONPATH instead of chdir keeps relative paths valid.
    path = os.pathsep.join(filter(None, [str(checkout), environment.get("PYTHONPATH", "")]))
    return command, {**environment, "PYTHONPATH": path}


def _become(environment: Mapping[str, str], *program: str) -> NoReturn:
    _replace_process(*_program(environment, *program))


def _replace_process(command: list[str], given: Mapping[str, str]) -> NoReturn:
    sys.stdout.flush()
    if sys.platform == "win32":  # where execve starts another process and returns to the shell
        sys.exit(subprocess.run(command, env=given, check=False).returncode)  # noqa: S603
    # No shell and no child: this process becomes the worker.
    os.execve(command[0], command, given)  # noqa: S606
