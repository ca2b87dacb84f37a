"""RPC for deployments: list, make, change and remove them."""

from dataclasses import dataclass

from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.models.deployments import Deployments
from shared import errors
from shared.api import deployments as api
from shared.api.method import Nothing
from shared.config_documents import ConfigKind, DeploymentDocument
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting


@dataclass(frozen=True, slots=True)
class DeploymentRpc:
    live: LiveConfiguration
    deployments: Deployments
    audit_reporting: AuditReporting

    @serves(api.list_deployments)
    async def list_deployments(self, request: api.ListDeployments, _call: RpcCall) -> api.Deployments:
        return api.Deployments(await self.deployments.list(request.name))

    @serves(api.deploy_model)
    async def deploy(self, request: api.DeployModel, call: RpcCall) -> Nothing:
        """Raises BadRequest with all mistakes."""
        await self._change(request.name, request.document, call)
        self.audit_reporting.report_action("model.deploy", call.principal, target=request.name, copies=str(request.document.copies))
        return Nothing()

    @serves(api.undeploy_model)
    async def undeploy(self, request: api.UndeployModel, call: RpcCall) -> Nothing:
        if request.name not in self.deployments.view().documents:
            raise errors.NotFound(f"no deployment is called {request.name!r}", hint="see `aicli models copies`")
        await self._change(request.name, None, call)
        self.audit_reporting.report_action("model.undeploy", call.principal, target=request.name)
        return Nothing()

    async def _change(self, name: str, document: DeploymentDocument | None, call: RpcCall) -> None:
        key = ConfigKind.DEPLOYMENT, name
        await self.live.change(lambda *_: {key: document}, origin="applied", author=call.principal.user_id)
