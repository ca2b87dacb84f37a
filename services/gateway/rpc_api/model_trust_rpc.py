"""Keeps signatures of versions, and gives them to workers with the configuration's rules about whose signatures count."""

from dataclasses import dataclass

from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.models.registry import ModelRegistry
from services.gateway.models.registry_store import EVERY_VERSION, RegistryStore
from shared import errors
from shared.api import model_trust as api
from shared.api import models
from shared.models import manifest, trust_bundle
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting


@dataclass(frozen=True, slots=True)
class ModelTrustRpc:
    live: LiveConfiguration
    store: RegistryStore
    registry: ModelRegistry
    audit_reporting: AuditReporting

    @serves(api.take_trust)
    async def take(self, request: api.TakeTrust, call: RpcCall) -> api.TakenTrust:
        versions = await self.registry.readers.list_trust(call.caller.node, request.versions)
        return api.TakenTrust.of(self.live.trust_rules(), versions)

    @serves(api.read_model_trust)
    async def read(self, request: api.ReadModelTrust, call: RpcCall) -> api.ModelTrust:
        """Raises NotFound."""
        if request.model is None:
            return api.ModelTrust(self.live.trust_rules())
        found = (await self.registry.list(models.ListModelVersions(request.model, request.version), call)).versions
        known = (await self.store.list_signatures(EVERY_VERSION, [found[0].name]))[found[0].name]
        return api.ModelTrust(self.live.trust_rules(), await self.registry.read_manifest(known.digest), known.signatures)

    @serves(api.sign_model_version)
    async def sign(self, request: api.SignModelVersion, call: RpcCall) -> models.ModelVersion:
        """Raises NotFound, NotAllowed, TooLarge, and BadRequest for what is no signature of this version."""
        version = await self.registry.get_changeable(call.principal, request.model, request.version)
        signature = trust_bundle.read(request.signature)
        if not signature.covers(manifest.read(await self.registry.read_manifest(version.digest))):
            raise errors.BadRequest(
                f"the signature is not one of {version.name}",
                hint=f"it must name the manifest {version.digest}, or exactly the version's files",
            )
        if not await self.store.add_signature(version, signature.hint, request.signature):
            raise errors.TooLarge(f"all signatures of a version may have {manifest.MAX_SIGNATURE_BYTES} bytes")
        self.audit_reporting.report_action(
            "model.sign", call.principal, tenant=version.organization, target=version.name, key=signature.hint
        )
        return await self.registry.get_changeable(call.principal, request.model, request.version)
