"""The RPC method by which an administrator reads what auth runs with."""

from services.auth.settings import AuthSettings
from shared.api import service_settings as api
from shared.node.shown_settings import shown
from shared.rpc import RpcCall, serves


class AuthShown:
    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings

    @serves(api.auth_settings)
    async def get_settings(self, request: api.GetSettings, call: RpcCall) -> api.ShownSettings:
        return shown(self._settings)
