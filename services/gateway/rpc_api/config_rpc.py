"""Administrators' RPC for the configuration: apply, export, history and rollback."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec

from services.gateway.configuration import config_checks, config_file, environment, lost_restrictions
from services.gateway.configuration.config_store import ConfigStore, StoredVersion
from services.gateway.configuration.live_configuration import Bodies, ConfigOutcome, LiveConfiguration
from services.gateway.facts.config_snapshot import DocumentKey, StoredDocument
from services.gateway.facts.unreadable import Unreadable
from services.gateway.servers import Servers
from services.gateway.settings import GatewaySettings
from shared import config_releases, errors, yaml_text
from shared.api import business
from shared.api import configuration as api
from shared.config_documents import BODIES, ConfigKind, Document, RouteDocument
from shared.protocol.directory import DirectoryEntry
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import ModelName, UserId

#: A message of the mesh has 1 MiB.
_MAX_REPLY_CHARACTERS = 2**18
_MAX_BODIES = 10


@dataclass(frozen=True, slots=True)
class ConfigRpc:
    """``served`` returns the models that workers serve now, ``gateways`` the gateways that are known."""

    live: LiveConfiguration
    store: ConfigStore
    settings: GatewaySettings
    rpc: RpcClient
    audit_reporting: AuditReporting
    servers: Servers
    served: Callable[[], Collection[ModelName]]
    gateways: Callable[[], Iterable[DirectoryEntry]]

    @serves(api.apply_config)
    async def apply(self, request: api.ApplyConfig, call: RpcCall) -> api.AppliedConfig:
        if (request.text is None) == (not request.documents):
            raise errors.BadRequest("send either text or documents")
        if request.text is not None and len(request.text.encode()) > api.MAX_FILE_BYTES:
            raise errors.BadRequest(
                f"the file is larger than {api.MAX_FILE_BYTES} bytes", hint="apply it in parts; documents it doesn't name stay"
            )
        read = await config_file.read(config_file.ReadRequest(request.text, request.documents))
        bodies, warnings = await self.servers.admit({key: _decode(key[0], document.body) for key, document in read.items()})

        def find_changes(current: Mapping[DocumentKey, StoredDocument]) -> Bodies:
            taken = [key for key in bodies if request.only_new and (stored := current.get(key)) is not None and stored.body is not None]
            if taken:
                raise errors.AlreadyExists(
                    f"there is a {taken[0][0].value} {taken[0][1]!r} already", hint="choose another name, or replace it"
                )
            unnamed = {
                key: stored.body
                for key, stored in current.items()
                if stored.body is not None and stored.tenant is None and key not in bodies
            }
            for body in unnamed.values() if request.prune else ():
                if isinstance(body, Unreadable):
                    # The export that is applied again lacks it, too.
                    raise body.problem()
            return {**bodies, **dict.fromkeys(unnamed)} if request.prune else bodies

        return await self._change(call, find_changes, request, origin="applied", note=request.note, warnings=warnings)

    @serves(api.rollback_config)
    async def roll_back(self, request: api.RollbackConfig, call: RpcCall) -> api.AppliedConfig:
        key = request.kind, request.name
        found = await self.store.versions(*key, request.version, limit=1)
        if not found:
            raise errors.NotFound(
                f"there is no version {request.version} of {request.kind.value} {request.name[:100]!r}",
                hint="see `aicli admin config history`",
            )
        try:
            body = _decode(request.kind, found[0].body)
        except msgspec.DecodeError as error:
            raise errors.BadRequest(
                f"this release can't use version {request.version}: {error}", hint="apply the document again"
            ) from error
        note = request.note or f"rollback to version {request.version}"
        bodies, warnings = await self.servers.admit({key: body})
        return await self._change(call, lambda _current: bodies, request, origin="rollback", note=note, warnings=warnings)

    @serves(api.import_environment)
    async def import_environment(self, request: api.ImportEnvironment, call: RpcCall) -> api.AppliedConfig:
        wanted = environment.read_documents(self.settings)
        find_changes = partial(environment.find_changes, wanted, force=True)
        return await self._change(call, find_changes, request, origin=environment.ENVIRONMENT, note="")

    @serves(api.export_config)
    async def export(self, _request: api.ExportConfig, _call: RpcCall) -> api.ExportedConfig:
        await self.live.reload()
        documents = self.live.documents
        present = {key: stored.body for key, stored in documents.items() if stored.body is not None and stored.tenant is None}
        bodies = {key: body for key, body in present.items() if not isinstance(body, Unreadable)}
        text = await asyncio.to_thread(config_file.write, bodies)
        text = "".join(f"# {body.problem().message}\n" for body in present.values() if isinstance(body, Unreadable)) + text
        return api.ExportedConfig(self.live.config.revision, text, tuple(environment.ignored_settings(self.settings, documents)))

    @serves(api.list_config_versions)
    async def list_versions(self, request: api.ListConfigVersions, call: RpcCall) -> api.ConfigVersions:
        limit = min(request.limit, _MAX_BODIES) if request.bodies else request.limit
        versions = await self.store.versions(request.kind, request.name, request.version, only_current=request.only_current, limit=limit)
        names = await name_authors(self.rpc, {version.author for version in versions}, call)
        return api.ConfigVersions(tuple(_wire(version, names[version.author], body=request.bodies) for version in versions))

    async def _change(
        self,
        call: RpcCall,
        find_changes: Callable[[Mapping[DocumentKey, StoredDocument]], Bodies],
        request: api.ApplyConfig | api.RollbackConfig | api.ImportEnvironment,
        *,
        origin: str,
        note: str,
        warnings: Collection[str] = (),
    ) -> api.AppliedConfig:
        """Write what differs, as one revision. Raises AlreadyExists after a newer revision, and BadRequest with all mistakes."""
        expected = getattr(request, "expected_revision", None)

        def check(revision: int, current: Mapping[DocumentKey, StoredDocument]) -> Bodies:
            if expected is not None and expected != revision:
                raise errors.AlreadyExists(
                    f"the configuration has changed: it is at revision {revision}, not {expected}",
                    hint="see `aicli admin config history`, then apply again",
                )
            return find_changes(current)

        author, is_dry, needed = call.principal.user_id, request.dry_run, self.live.config.needs_release
        done = await self.live.change(check, origin=origin, author=author, note=note, is_dry=is_dry)
        if done.written:
            targets = ", ".join(f"{kind.value} {name}" for kind, name in done.changed)
            imports, reverts = origin == environment.ENVIRONMENT, origin == "rollback"
            self.audit_reporting.report_action(
                "config.import" if imports else "config.rollback" if reverts else "config.apply",
                call.principal,
                target=targets[:200],
                revision=str(done.revision),
            )
        routes = [name for (_, name), body in ({**done.before, **done.changed}).items() if isinstance(body, RouteDocument)]
        return api.AppliedConfig(
            done.revision,
            tuple(_compare(done)),
            (
                *warnings,
                *config_checks.warnings(done.changed, routes, self.served()),
                *lost_restrictions.find(done.before, done.changed),
                *self._find_cut(done, needed),
            ),
        )

    def _find_cut(self, done: ConfigOutcome, before: str) -> Iterator[str]:
        """Yield which documents keep out releases that could run ``before``, and gateways of them that run now."""
        running = [entry.announcement for entry in self.gateways() if entry.alive]
        for (kind, name), body in done.changed.items():
            needed = config_releases.find_needed(kind, name, body)
            if config_releases.is_older(before, needed):
                cut = [gateway.node[:12] for gateway in running if config_releases.is_older(gateway.reads_release, needed)]
                line = f"{kind.value} {name}: gateways of releases before {needed} can't read it, and are cut off while it is current"
                yield f"{line}; {', '.join(cut)} now" if cut else line


async def name_authors(rpc: RpcClient, authors: Set[UserId | None], call: RpcCall) -> dict[UserId | None, str]:
    """Return each author's name, which is empty for None; the id if auth can't be reached or doesn't know it."""
    users, names = tuple(author for author in authors if author is not None), dict[str, str]()
    if users:
        with suppress(errors.PeerError):
            names = (await rpc.call(business.name_users, business.NameUsers(users), credential=call.credential)).names
    return {author: "" if author is None else names.get(str(author), str(author)) for author in authors}


def _decode(kind: ConfigKind, body: str | None) -> Document | None:
    return None if body is None else msgspec.json.decode(body, type=BODIES[kind])


def _compare(done: ConfigOutcome) -> Iterator[api.ConfigChange]:
    room = _MAX_REPLY_CHARACTERS
    for key, body in done.changed.items():
        version = done.written[key].version if key in done.written else 0
        texts = _yaml(done.before.get(key)), _yaml(body)
        room -= sum(len(text or "") for text in texts)
        yield api.ConfigChange(*key, *texts, version) if room >= 0 else api.ConfigChange(*key, None, None, version, is_cut=True)


def _readable(version: StoredVersion) -> object:
    """Return the body, even if only another release can use it."""
    try:
        return _decode(version.kind, version.body)
    except msgspec.DecodeError:
        return msgspec.json.decode(version.body or "null")


def _yaml(body: object) -> str | None:
    if isinstance(body, Unreadable):
        return f"# {body.problem().message}\n"
    return None if body is None else yaml_text.render(msgspec.to_builtins(body))


def _wire(version: StoredVersion, author: str, *, body: bool) -> api.ConfigVersion:
    return api.ConfigVersion(
        kind=version.kind,
        name=version.name,
        version=version.version,
        revision=version.revision,
        body=_yaml(_readable(version)) if body else None,
        removes=version.body is None,
        origin=version.origin,
        author=author,
        note=version.note,
        created_at=version.created_at,
        is_current=version.is_current,
        needs_release=_needs_release(version),
    )


def _needs_release(version: StoredVersion) -> str:
    if version.needs_release is not None:
        return version.needs_release
    try:
        return config_releases.find_needed(version.kind, version.name, _decode(version.kind, version.body))
    except msgspec.DecodeError:
        return ""
