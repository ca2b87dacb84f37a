"""The backup agent as a program of the stack."""

import sys
from pathlib import Path

from features.backup.settings import BackupSettings
from shared import config
from stack import stack_plan
from stack.features import StackSite
from stack.servers.program import Program, SocketProbe
from stack.settings import OF_EVERY_NODE
from stack.stack_home import StackHome

#: Its name, and those of its node key and its role in PostgreSQL.
NAME = "backup"
#: It answers so on its socket once it has opened the store.
READY = b"ready\n"
#: Its argument before an upgrade.
ONCE = "--once"


def plan(site: StackSite) -> Program:
    return Program(
        name=NAME,
        command=(sys.executable, "-m", "features.backup.stack.agent.backup_agent"),
        environment={**site.machine, **environment(site)},
        stage=1,
        probe=SocketProbe(socket_of(site.home), b"", READY),
        hopeless_status=2,
    )


def environment(site: StackSite) -> dict[str, str]:
    """Return the settings of the agent, without the machine's variables."""
    names = (*OF_EVERY_NODE.split(), *(setting.variable.name for setting in config.settings_of(BackupSettings)))
    given = stack_plan.node_environment(site.home, site.settings, site.recorded, NAME, names)
    if not stack_plan.has_external_databases(site.settings) and site.settings.of(BackupSettings).backup_database != "managed":
        ours = {"BACKUP_DATABASE_URL_FILE": str(stack_plan.database_url_file(site.home, NAME))}
        given |= stack_plan.external_or(site.recorded, "BACKUP_DATABASE_URL", ours)
    return {"AIMESH_HOME": str(site.home.root), **given}


def socket_of(home: StackHome) -> Path:
    return home.sockets / "backup.sock"
