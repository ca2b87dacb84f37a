"""What hello adds to the gateway."""

from features.hello import contract, instruments
from features.hello.gateway.store import HelloStore
from features.hello.settings import HelloSettings
from services.gateway.features import Built, GatewayPart, Site
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry.metric_families import Counter


class HelloRpc:
    def __init__(self, store: HelloStore, greeting: str, said: Counter, reporting: AuditReporting) -> None:
        self._store, self._greeting, self._said, self._reporting = store, greeting, said, reporting

    @serves(contract.say_hello)
    async def say(self, request: contract.SayHello, call: RpcCall) -> contract.Hello:
        self._said.inc()
        self._reporting.report_action("hello.say", call.principal, tenant=call.principal.tenant_id, target=request.name)
        return contract.Hello(f"{self._greeting}, {request.name}!", await self._store.count(call.principal.tenant_id))


def _build(site: Site) -> Built:
    store = HelloStore(site.database)
    rpc = HelloRpc(store, site.settings.of(HelloSettings).greeting, site.node.metrics.counter(instruments.SAID), site.audit_reporting)
    return Built(served=[rpc], erase=store.erase)


PART = GatewayPart(_build)
