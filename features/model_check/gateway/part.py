"""What the check of models adds to the gateway."""

from collections.abc import Callable
from functools import partial

from features.model_check import contract
from features.model_check.gateway.store import CheckStore
from services.gateway import background_jobs
from services.gateway.facts import model_builds
from services.gateway.features import Built, GatewayPart, Site
from shared import errors
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import ModelName, Role

_JOB = "model_checks"
#: How late a gateway may learn of another one's result.
_SECONDS = 15.0


class ModelChecks:
    """Serves the methods, and keeps ``right_calls`` as the table of all gateways says."""

    def __init__(
        self, store: CheckStore, right_calls: dict[str, int], find_builds: Callable[[ModelName], frozenset[str]], reporting: AuditReporting
    ) -> None:
        self._store, self._right_calls, self._find_builds, self._audit_reporting = store, right_calls, find_builds, reporting

    async def reload(self) -> None:
        found = await self._store.read()
        self._right_calls.clear()
        self._right_calls.update(found)

    @serves(contract.find_model_builds)
    async def find(self, request: contract.FindModelBuilds, call: RpcCall) -> contract.ModelBuilds:
        """Raises NotFound for what no worker calls so, such as a route or an alias."""
        model = ModelName(request.model)
        builds = sorted(self._find_builds(model))[: contract.MAX_BUILDS]
        if not builds:
            raise errors.NotFound(f"no worker has a model of its own called {model!r} that answers", hint="name it as `aicli models` does")
        return contract.ModelBuilds(model, tuple(builds))

    @serves(contract.record_model_check)
    async def record(self, request: contract.RecordModelCheck, call: RpcCall) -> Nothing:
        """Raises NotFound if none of the builds is served any more."""
        builds = self._find_builds(ModelName(request.model)).intersection(request.builds)
        if not builds:
            raise errors.NotFound(f"{request.model} has changed during the check", hint="check it again")
        await self._store.record(builds, request.right_calls)
        await self.reload()
        self._audit_reporting.report_action("model.check", call.principal, target=request.model, right_calls=str(request.right_calls))
        return Nothing()


def _build(site: Site) -> Built:
    node = site.node

    def find_builds(model: ModelName) -> frozenset[str]:
        return model_builds.of(model_builds.offers_of((model,), node.directory.usable(Role.WORKER)))

    checks = ModelChecks(CheckStore(site.database), site.right_calls, find_builds, site.audit_reporting)
    return Built(served=[checks], tasks={"model checks": partial(background_jobs.repeat, _JOB, _SECONDS, checks.reload, node.metrics)})


PART = GatewayPart(_build)
