"""What a home must not start with: another site has taken over, or its database is gone."""

from pathlib import Path

import msgspec

from shared import errors
from stack import stack_home
from stack.recovery.sites.site_terms import SiteRecord
from stack.servers.postgres import Postgres
from stack.stack_home import StackHome

#: Beside it: what a standby follows.
STANDBY = "standby.json"


def _path(home: StackHome) -> Path:
    return home.run / "replaced.json"


def record(home: StackHome, by: SiteRecord) -> None:
    stack_home.write_struct(_path(home), by)


def ensure_not_replaced(home: StackHome) -> None:
    """Raises BadSettings if another site has taken over, or if this is a standby."""
    if (home.run / STANDBY).exists():
        raise errors.BadSettings(f"{home.root} is a standby of another site", hint="to take over: aicli stack promote")
    hint = "to bring it back, make it the other site's standby: aicli stack standby --replace"
    try:
        by = msgspec.json.decode(_path(home).read_bytes(), type=SiteRecord)
    except FileNotFoundError:
        return
    except msgspec.MsgspecError as error:
        raise errors.BadSettings(f"{_path(home)} is unreadable, so another site may have taken over", hint=hint) from error
    place = f" ({by.url})" if by.url else ""
    raise errors.BadSettings(f"this site was replaced by {by.site}{place} at {by.at:%Y-%m-%d %H:%M:%S} UTC", hint=hint)


def ensure_database_is_there(home: StackHome, server: Postgres | None) -> None:
    """Raises BadSettings if a home that was backed up has no database: an empty one would hide that it is lost. ``server`` is None if
    it is not ours."""
    if server is not None and home.own_site.exists() and not (server.data / "PG_VERSION").exists():
        raise errors.BadSettings(
            f"the database in {server.folder} is gone, and there are backups of it",
            hint="restore it: aicli stack restore latest --replace --identity FILE; "
            f"to begin with an empty one, remove {home.own_site} and set BACKUP_TO to an empty place",
        )
