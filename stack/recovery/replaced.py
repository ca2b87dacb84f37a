"""Remembers in the home of a stack that another site has taken over, so that nothing starts there again."""

from pathlib import Path

import msgspec

from shared import errors
from stack import stack_home
from stack.recovery.site_terms import SiteRecord
from stack.stack_home import StackHome

#: Beside it: what a standby follows.
STANDBY = "standby.json"


def _path(home: StackHome) -> Path:
    return home.run / "replaced.json"


def record(home: StackHome, by: SiteRecord) -> None:
    stack_home.write_private(_path(home), msgspec.json.encode(by).decode())


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
