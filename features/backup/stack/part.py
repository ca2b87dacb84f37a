"""What backups add to the stack. Each command of a stack imports this, and what the functions import only if it calls them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from features.backup.contract import BackupState
from features.backup.settings import BackupSettings
from features.backup.stack import agent_program
from shared import addresses
from shared.identity import private_file
from stack import secret_files, settings
from stack.features import ContainerSite, StackPart, StackSite
from stack.servers.postgres import Postgres
from stack.servers.program import Program
from stack.settings import StackSettings
from stack.stack_home import StackHome

_OF_AWS = ("access_key_id", "secret_access_key", "session_token")


def defaults(site: StackSite, service: str) -> Mapping[str, str]:
    return {"BACKUP_STATE": state_of(site.settings, site.recorded)} if service == "auth" else {}


def programs(site: StackSite) -> Sequence[Program]:
    return (agent_program.plan(site),) if site.settings.of(BackupSettings).backup_to else ()


def database_options(settings: StackSettings) -> Mapping[str, str]:
    chosen = settings.of(BackupSettings)
    # What the replication slot keeps on this disk while the store fails.
    return {"max_slot_wal_keep_size": chosen.backup_wal_most} if chosen.backup_to else {}


def ensure_may_start(home: StackHome, server: Postgres | None) -> None:
    from features.backup.stack import site_term

    site_term.ensure_not_replaced(home)
    if server is not None:
        site_term.ensure_not_lost(server, home.own_site)


async def before_migrations(home: StackHome, server: Postgres, programs: Sequence[Program]) -> None:
    from features.backup.stack import upgrade

    agent = next((program for program in programs if program.name == agent_program.NAME), None)
    await upgrade.before_migrations(home, server, agent)


def is_preparing(home: StackHome) -> bool:
    """A base backup takes as long as the database is large, and gives up when it stalls."""
    try:
        inode = home.base_backup.with_suffix(".lock").stat().st_ino
        return f":{inode} " in Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False


def notes(home: StackHome, recorded: Mapping[str, str]) -> Sequence[str]:
    from features.backup.stack import upgrade

    return upgrade.notes_of(upgrade.read_points(home), backs_up="BACKUP_TO" in recorded)


def ensure_secrets(home: StackHome) -> None:
    from features.backup.stack import sealing

    private_file.create(home.secrets / secret_files.BACKUP_IDENTITY, lambda: sealing.new_identity().encode())


def state_of(settings: StackSettings, recorded: Mapping[str, str]) -> BackupState:
    """Return whether there are backups, or should be: other machines can reach the stack."""
    if {"BACKUP_TO", "BACKUP_TO_FILE"} & recorded.keys():
        return BackupState.ON
    return BackupState.OFF if {settings.host, settings.dht_host} <= addresses.LOOPBACK else BackupState.MISSING


def container_files(site: ContainerSite) -> Mapping[str, Mapping[str, bytes]]:
    """Give auth its setting, and the agent what it reads of the home, and so everything that it backs up."""
    return {"auth": {"backup_state": _state_in_container(site.given).encode()}, "backup": _agents_home(site)}


def _state_in_container(given: Callable[[str], str]) -> str:
    is_public = (given("PUBLISH_ADDRESS") or "127.0.0.1") not in addresses.LOOPBACK
    return given("BACKUP_STATE") or (BackupState.ON if given("BACKUP_TO") else BackupState.MISSING if is_public else BackupState.OFF)


def _agents_home(site: ContainerSite) -> Mapping[str, bytes]:
    from features.backup.stack.agent import backup_files

    home, given = site.home, site.given
    if not given("BACKUP_TO"):
        return {}
    ensure_secrets(home)
    found = backup_files.collect(home, settings.read_recorded(home))
    kept = {str(path): (home.root / path).read_bytes() for path in (*found.secrets, *found.files)}
    keys = {f"secrets/environment/aws_{name}": given(f"AWS_{name.upper()}").encode() for name in _OF_AWS}
    is_theirs = given("DATABASE_URL") or given("GATEWAY_DATABASE_URL")
    url = given("BACKUP_DATABASE_URL").encode() or (b"" if is_theirs else site.database_url(agent_program.NAME))
    return {**kept, **keys, "secrets/database_url_backup": url, "run/sockets": str(home.sockets).encode()}


PART = StackPart(
    defaults=defaults,
    programs=programs,
    database_options=database_options,
    ensure_may_start=ensure_may_start,
    before_migrations=before_migrations,
    is_preparing=is_preparing,
    notes=notes,
    ensure_secrets=ensure_secrets,
    container_files=container_files,
)
