"""RPC for deployments: list, make, change and remove them."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.models.deployments import Deployments
from shared import errors
from shared.api import deployments as api
from shared.api.method import Nothing
from shared.config_documents import ConfigKind, DeploymentDocument
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import TenantId


@dataclass(frozen=True, slots=True)
class DeploymentRpc:
    live: LiveConfiguration
    deployments: Deployments
    #: Returns the catalog's source of a model. Raises UnknownModel.
    find_source: Callable[[str], str]
    audit_reporting: AuditReporting

    @serves(api.list_deployments)
    async def list_deployments(self, request: api.ListDeployments, _call: RpcCall) -> api.Deployments:
        return api.Deployments(await self.deployments.list(request.name))

    @serves(api.deploy_model)
    async def deploy(self, request: api.DeployModel, call: RpcCall) -> Nothing:
        """Raises BadRequest with all mistakes, UnknownModel, and AlreadyExists for the model of another one than the document names.

        A name without a source is a pushed model, or else one of the catalog."""
        document = request.document
        if not document.source:
            # Perhaps the model was pushed just now.
            await self.live.reload()
        if not document.source and not self.deployments.knows(request.name) and self.deployments.has_versions(request.name):
            raise _not_promoted(request.name)
        if not document.source and not self.deployments.knows(request.name):
            document = msgspec.structs.replace(document, source=self.find_source(request.name))
        if not document.source and not self.deployments.is_owned(request.name, document):
            raise _not_owned(request.name, self.deployments.owner_of(request.name))
        await self._change(request.name, document, call)
        self.audit_reporting.report_action("model.deploy", call.principal, target=request.name, copies=str(document.copies))
        return Nothing()

    @serves(api.undeploy_model)
    async def undeploy(self, request: api.UndeployModel, call: RpcCall) -> Nothing:
        if request.name not in self.deployments.documents:
            raise errors.NotFound(f"no deployment is called {request.name!r}", hint="see `aicli models copies`")
        await self._change(request.name, None, call)
        self.audit_reporting.report_action("model.undeploy", call.principal, target=request.name)
        return Nothing()

    async def _change(self, name: str, document: DeploymentDocument | None, call: RpcCall) -> None:
        key = ConfigKind.DEPLOYMENT, name
        await self.live.change(lambda *_: {key: document}, origin="applied", author=call.principal.user_id)


def _not_promoted(name: str) -> errors.UnknownModel:
    model, _, word = name.partition("@")
    if word.isdigit():
        return errors.UnknownModel(f"{model} has no version {word} that may be loaded", hint=f"see `aicli models versions {model}`")
    channel = f" --channel {word}" if word else ""
    return errors.UnknownModel(f"no version of {name} is promoted", hint=f"aicli models promote {model}{channel}")


def _not_owned(name: str, owner: TenantId | None) -> errors.AlreadyExists:
    if owner is None:
        return errors.AlreadyExists(f"{name} is a model of the mesh", hint="leave --organization out")
    return errors.AlreadyExists(
        f"{name} is a model of the organization or account {owner}", hint=f"to put that model on machines, add --organization {owner}"
    )
