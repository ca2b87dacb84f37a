"""Takes the next term for a home that is restored: two restores at once get different answers."""

import secrets
import socket
from collections.abc import Mapping
from datetime import UTC, datetime

from shared import errors
from shared.identity.node_keys import NodeKey
from shared.stores.objects import ObjectStore, StoreUnavailable
from stack import settings, stack_home, stack_plan
from stack.recovery import catalog, layout
from stack.recovery.layout import BackupManifest, RestoreRefused, StoreMesh
from stack.recovery.sites import site_terms
from stack.recovery.sites.site_terms import SiteRecord, TermOutcome
from stack.stack_home import StackHome


async def find_last_sign(store: ObjectStore, backup: BackupManifest) -> datetime:
    """Return when a site last said that it is alive, by the store's clock. Raises RestoreRefused if the store has lost terms."""
    found = [each async for each in store.list(site_terms.FOLDER)]
    highest = site_terms.find_highest({each.name for each in found}) or backup.term
    if highest < backup.term:
        raise RestoreRefused(
            f"the backup is of term {backup.term}, and the store knows {highest}",
            hint="terms were deleted; check who can write to the store",
        )
    return max((each.changed_at for each in found if each.name.endswith(".lease")), default=backup.finished_at)


async def plan_record(store: ObjectStore, mesh: StoreMesh, recorded: Mapping[str, str], term: int) -> SiteRecord:
    """``recorded``: settings of the new home. ``term``: of its backup."""
    highest = site_terms.find_highest({each.name async for each in store.list(site_terms.FOLDER)})
    previous = None if highest is None else await _read(store, mesh, highest)
    try:
        url = stack_plan.public_url("gateway", settings.load(recorded))
    except errors.BadSettings:  # its certificate is not here yet
        url = ""
    site = recorded.get("SITE_NAME") or socket.gethostname()
    return SiteRecord(
        term=max(highest or 0, term) + 1, site=site, at=datetime.now(UTC), url=url,
        previous="" if previous is None else previous.site, nonce=secrets.token_hex(16),
    )  # fmt: skip


async def take(store: ObjectStore, mesh: StoreMesh, key: NodeKey, record: SiteRecord) -> None:
    """Safe to repeat. Raises RestoreRefused if another site has this term or a later one."""
    name = site_terms.record_name(record.term)
    highest = site_terms.find_highest({each.name async for each in store.list(site_terms.FOLDER)}) or 0
    if highest < record.term:
        await store.put_if_absent(name, layout.sign(name, record, key))
        highest = record.term
    outcome = site_terms.judge_put(record, await _read(store, mesh, record.term))
    if outcome is TermOutcome.UNKNOWN:
        raise StoreUnavailable(f"the store confirmed {name} but does not have it", hint="run it again")
    if outcome is TermOutcome.LOST_RACE or highest > record.term:
        other = await _read(store, mesh, highest)
        raise RestoreRefused(
            f"lost_race: the site {'?' if other is None else other.site} has taken term {highest} meanwhile",
            hint="only one site may own the mesh; to restore here all the same: aicli stack restore --abort, then restore again",
        )


def save(home: StackHome, record: SiteRecord) -> None:
    """Write down the term for the agent, and for the gateway, which the agent may reach only later."""
    stack_home.write_struct(home.own_site, record)
    if home.settings_file.exists():
        lines = home.settings_file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("SITE_TERM=")]
        stack_home.write_private(home.settings_file, "\n".join([*kept, f"SITE_TERM={record.term}", ""]))


async def _read(store: ObjectStore, mesh: StoreMesh, term: int) -> SiteRecord | None:
    return await catalog.find_signed(store, mesh, site_terms.record_name(term), SiteRecord)
