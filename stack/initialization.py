"""`aicli stack init`: create what a stack needs before it starts, and repair what is broken. Idempotent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stack import ports, secret_files, settings, stack_plan
from stack import stack_home as homes
from stack.network import lan
from stack.servers import nats_server
from stack.settings import StackSettings
from stack.stack_home import StackHome


@dataclass(frozen=True, slots=True)
class InitializedStack:
    settings: StackSettings
    #: The user's settings, secrets as NAME_FILE.
    recorded: dict[str, str]
    #: The secrets that were created.
    made: list[str]


def ensure(home: StackHome, environment: Mapping[str, str], folder: Path) -> InitializedStack:
    """Create folders, secrets, settings and server configuration. ``folder`` resolves the user's relative paths.

    Raises BadSettings, and then saves none of the user's settings.
    """
    homes.ensure_folders(home)
    before = settings.read_recorded(home)
    wanted = settings.load(settings.merge(before, environment, folder))
    if wanted.lan is not None:
        lan.refuse_both(before, environment)
        environment = {**environment, **lan.ensure(home, lan.find_address(wanted.lan))}
    elif "LAN" in before:
        environment = {**dict.fromkeys(lan.SETTINGS, ""), **environment}
    made = secret_files.ensure(home)
    recorded = settings.record(home, environment, folder)
    loaded = settings.load(recorded)
    for backend, port in stack_plan.more_ports(loaded).items():
        if port is None:
            recorded = settings.record(home, {stack_plan.port_setting(f"inference-{backend}"): str(ports.find_free())}, folder)
            loaded = settings.load(recorded)
    if loaded.nats_url is None and loaded.nats_web_port is None:
        recorded = settings.record(home, {"NATS_WEB_PORT": str(ports.find_free())}, folder)
        loaded = settings.load(recorded)
    nats_server.ensure(home, loaded.mesh, loaded.nats_port, loaded.nats_admission, loaded.nats_web_port)
    database = stack_plan.postgres_of(home)
    for role in secret_files.LOGIN_ROLES:
        # Written each time: it contains the path of the socket, and homes get moved.
        url = database.url(role, secret_files.read(home, f"postgres_{role}"))
        homes.write_private(stack_plan.database_url_file(home, role), url + "\n")
    return InitializedStack(loaded, recorded, made)
