"""Serves the gateway's settings and tiers to administrators."""

from services.gateway.settings import GatewaySettings
from shared.api import service_settings as api
from shared.node.shown_settings import shown
from shared.rpc import RpcCall, serves


class GatewayShown:
    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings

    @serves(api.gateway_settings)
    async def get_settings(self, request: api.GetSettings, call: RpcCall) -> api.ShownSettings:
        return shown(self._settings)

    @serves(api.list_tiers)
    async def list_tiers(self, request: api.ListTiers, call: RpcCall) -> api.Tiers:
        return api.Tiers(
            tuple(
                api.TierTerms(
                    tier,
                    requests_per_hour=plan.requests_per_hour,
                    requests_per_minute=plan.requests_per_minute,
                    tokens_per_minute=plan.tokens_per_minute,
                    concurrency=plan.concurrency,
                    monthly_micro=plan.monthly_micro,
                )
                for tier, plan in self._settings.plans().items()
            )
        )
