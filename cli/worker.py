"""`aicli worker`: one more worker on this machine, in the foreground.

It gets a node of its own in the embedded stack, a free loopback port and its settings, and then this process becomes the
worker, so that Ctrl-C, exit status and log lines are the worker's own. Run by hand, it is one of possibly many: a lock on
`run/local-worker-N.lock`, which lives as long as the process, keeps two of them from being the same node.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from cli.stack.home import Home

#: More workers on one machine are more likely a loop in somebody's script.
_MOST_WORKERS = 64
#: What a worker knows; a test holds it together with services.inference.
BACKENDS = ("llama", "ollama", "openai", "echo")


@click.command()
@click.option("--backend", type=click.Choice(BACKENDS), help="What runs the models. Default: INFERENCE_BACKEND, or llama.")
@click.option(
    "--model", "models", multiple=True, metavar="NAME=PATH", help="A GGUF file to serve under a name; may be given several times."
)
@click.option("--slots", type=click.IntRange(1, 256), help="How many answers a model writes at the same time.")
@click.option("--port", type=click.IntRange(1, 65535), help="The loopback port for its HTTP endpoints. Default: a free one.")
@click.pass_obj
def worker(here: Surroundings, /, *, backend: str | None, models: tuple[str, ...], slots: int | None, port: int | None) -> NoReturn:
    """Run a worker on this machine, in the foreground.

    Keys and addresses of other backends come from the environment: OLLAMA_URL, OPENAI_BASE_URL and OPENAI_API_KEY_FILE. With
    NODE_KEY_FILE set, it joins the mesh at NATS_URL as that node, without a stack on this machine.
    """
    given: dict[str, str] = {}
    if backend:
        given["INFERENCE_BACKEND"] = backend
    if models:
        given["MODELS"] = ",".join(_checked_model(text, here.folder) for text in models)
    if slots:
        given["ENGINE_SLOTS"] = str(slots)
    environment = plan_environment(here.environment, given)
    environment["INFERENCE_SERVICE_PORT"] = str(port or _free_port())
    _become(environment)


def plan_environment(outside: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """What the worker's process gets: options before the environment before the settings of the stack."""
    environment = {**outside, **given}
    return environment if outside.get("NODE_KEY_FILE") else _in_stack(environment)


def _checked_model(text: str, folder: Path) -> str:
    """``NAME=PATH`` with the path made absolute; raises click.UsageError for what the worker could not use."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise click.UsageError(f"--model {text!r} is not NAME=PATH")
    file = (folder / Path(path).expanduser()).absolute()
    if not file.is_file():
        raise click.UsageError(f"--model {name}: there is no file {file}")
    if "," in text:
        raise click.UsageError(f"--model {name}: commas separate models, so a path cannot have one: make a link to it")
    return f"{name}={file}"


def _in_stack(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker of this machine's stack, as a node of its own there."""
    from cli.stack import home, nats_users, plan, settings
    from shared import errors
    from shared.types import Role

    stack = home.locate(environment)
    if not stack.nats.is_dir():
        raise errors.BadSettings(f"there is no stack in {stack.root}", hint="run `make up` first, or set NODE_KEY_FILE and NATS_URL")
    recorded = settings.read_recorded(stack)
    chosen = settings.load(recorded)
    if chosen.nats_url:
        raise errors.BadSettings(
            "this stack uses a NATS server of yours, where aicli can add no node by itself",
            hint="aicli stack add-node NAME worker makes one; let NATS read the users, and set NODE_KEY_FILE to its key",
        )
    key_file = nats_users.add_node(stack, chosen.mesh, _claim_name(stack), Role.WORKER)
    own = plan.service_environment(stack, chosen, recorded, "inference") | {"NODE_KEY_FILE": str(key_file)}
    # What the user says here and now goes before what the stack's own worker got, also where one says NAME and the other
    # NAME_FILE; which mesh it is, is the stack's to say.
    stands = {name: value for name, value in own.items() if name.removesuffix("_FILE") not in environment}
    mesh = {"MESH_NAME": chosen.mesh, "NATS_URL": plan.nats_url(chosen), "NODE_KEY_FILE": str(key_file)}
    return {**stands, **environment, **mesh}


def _claim_name(stack: "Home") -> str:
    """The first name that no running worker has."""
    import fcntl

    from shared import errors

    for number in range(1, _MOST_WORKERS + 1):
        name = f"local-worker-{number}"
        lock = os.open(stack.run / f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        # The lock goes over to the worker that this process becomes, and ends with it.
        os.set_inheritable(lock, True)
        return name
    raise errors.Overloaded(f"{_MOST_WORKERS} workers run on this machine already", hint="stop one, or give one more --slots")


def _free_port() -> int:
    from cli.stack import ports

    return ports.find_free()


def _become(environment: Mapping[str, str]) -> NoReturn:
    command = [sys.executable, "-m", "services.inference"]
    checkout = Path(__file__).resolve().parent.parent
    # From a checkout the package need not be installed; PYTHONPATH and not chdir, so that relative paths stay right.
    path = os.pathsep.join(filter(None, [str(checkout), environment.get("PYTHONPATH", "")]))
    sys.stdout.flush()
    # No shell, and no child either: the worker is this process from here on.
    os.execve(command[0], command, {**environment, "PYTHONPATH": path})  # noqa: S606
