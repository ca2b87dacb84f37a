"""Says which models this worker may load: by the mesh's rules, by MODEL_TRUST, and by what was revoked.

The worker asks a gateway for the rules and for the signatures of its versions, and keeps the last answer over restarts.
"""

import asyncio
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from yaml import MappingNode, Node, SequenceNode

from services.inference.models import yaml_tree
from services.inference.models.catalog import CatalogEntry
from services.inference.models.model_store import ModelStore
from services.inference.models.yaml_tree import NotReadable
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import model_trust as api
from shared.api.model_copies import VERSION_SOURCE
from shared.api.model_trust import VersionTrust
from shared.config_documents import RouteName, TrustDocument
from shared.identity import private_file
from shared.models import trust_rules
from shared.models.trust_rules import TRUSTED, Distrust, LoadableModel, TrustRules, Verdict
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.types import ModelName

#: A change reaches each worker within this and what a gateway needs to read it.
ASK_SECONDS = 10.0
LOOK_SECONDS = 1.0
_DEADLINE_SECONDS = 5.0
_MAX_FILE_BYTES = 8 << 20
#: The name of a rule for all models.
_EVERYTHING = "*"

log = logs.get()


class _Known(msgspec.Struct, frozen=True):
    """What a gateway said last."""

    rules: dict[str, TrustDocument] = {}
    versions: dict[ModelName, VersionTrust] = {}


class _TrustFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """MODEL_TRUST, as `aicli admin config export` writes the section."""

    trust: dict[RouteName, TrustDocument]


@dataclass(slots=True)
class ModelTrust:
    #: MODEL_TRUST.
    own: TrustRules
    #: For the last answer.
    file: Path
    _known: _Known = field(default_factory=_Known)
    #: By names, manifest and files.
    _verdicts: dict[tuple[tuple[ModelName, ...], str, tuple[str, ...]], Verdict] = field(default_factory=dict)

    @classmethod
    def open(cls, settings: InferenceSettings) -> "ModelTrust":
        """Blocks; raises BadSettings."""
        file = settings.state_file.with_suffix(".trust")
        return cls({} if settings.model_trust is None else _read_rules(settings.model_trust), file, _read_known(file))

    def judge(self, entry: CatalogEntry, hashes: tuple[str, ...]) -> Verdict:
        """``hashes``: of the files of a version, as far as they have been read."""
        key = entry.names, "" if entry.version is None else entry.version.digest, hashes
        if (verdict := self._verdicts.get(key)) is None:
            verdict = self._verdicts[key] = self._judge(entry, hashes)
        return verdict

    def _judge(self, entry: CatalogEntry, hashes: tuple[str, ...]) -> Verdict:
        known = self._known.versions.get(entry.name, VersionTrust(""))
        # A version whose manifest can't be read stays revoked.
        if entry.version is not None and known.digest != entry.version.digest:
            known = VersionTrust("")
        revoked = TRUSTED if known.revoked is None else Verdict(Distrust.REVOKED, f"it was revoked: {known.revoked}", is_refused=True)
        model = LoadableModel(entry.names, entry.version, known.signatures, hashes)
        verdicts = (trust_rules.judge(self._known.rules, "the mesh's rule", model), trust_rules.judge(self.own, "MODEL_TRUST", model))
        return trust_rules.strictest((revoked, *verdicts))

    async def run(self, rpc: RpcClient, store: ModelStore) -> None:
        """Ask the gateways, more often when versions come and go, forever."""
        asked: tuple[ModelName, ...] = ()
        asked_at, refusal = -math.inf, ""
        while True:
            names = tuple(model.name for model in await asyncio.to_thread(store.models) if model.source.startswith(VERSION_SOURCE))
            if names != asked or time.monotonic() - asked_at >= ASK_SECONDS:
                try:
                    await self._ask(rpc, names)
                    asked, asked_at = names, time.monotonic()
                except errors.AimeshError as error:
                    if error.message != refusal:
                        refusal = error.message
                        log.info("trust_not_taken", reason=refusal)
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(self, rpc: RpcClient, names: tuple[ModelName, ...]) -> None:
        """Raises what the call raises."""
        known = _Known()
        for start in range(0, max(1, len(names)), api.MAX_VERSIONS):
            request = api.TakeTrust(names[start : start + api.MAX_VERSIONS])
            taken = await rpc.call(api.take_trust, request, deadline_seconds=_DEADLINE_SECONDS)
            known = _Known(taken.read_rules(), known.versions | taken.versions)
        if known != self._known:
            self._known = known
            self._verdicts.clear()
            await asyncio.to_thread(private_file.replace, self.file, msgspec.json.encode(known))


def _read_known(file: Path) -> _Known:
    """Return what a gateway said last; if that can't be read, nothing may be loaded until one answers."""
    try:
        with file.open("rb") as opened:
            # Anyone who can write it could let other models pass.
            if not os.fstat(opened.fileno()).st_mode & 0o022:
                return msgspec.json.decode(opened.read(_MAX_FILE_BYTES), type=_Known)
    except FileNotFoundError:
        return _Known()
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        log.warning("trust_unreadable", file=str(file), reason=str(error))
    return _Known({_EVERYTHING: api.NOTHING_TRUSTED})


def _read_rules(file: Path) -> Mapping[str, TrustDocument]:
    """Raises BadSettings."""
    from shared.models import trust_bundle  # noqa: PLC0415 - see trust_rules

    try:
        with file.open(encoding="utf-8") as opened:
            root = yaml_tree.read(opened.read(_MAX_FILE_BYTES))
        found = msgspec.convert(None if root is None else _plain(root), _TrustFile).trust
        for rule in found.values():
            for key in rule.keys:
                trust_bundle.read_public_key(key)
    except (OSError, ValueError, NotReadable, errors.BadRequest) as error:
        raise errors.BadSettings(f"MODEL_TRUST: {file} can't be used: {error}", hint="see docs/howto/models.md#signed-models") from error
    return found


def _plain(node: Node) -> object:
    if isinstance(node, MappingNode):
        return {str(name.value): _plain(value) for name, value in node.value}
    return [_plain(each) for each in node.value] if isinstance(node, SequenceNode) else str(node.value)
