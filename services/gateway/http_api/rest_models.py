"""Serves the /api routes for models: those that are served, and those that can be found."""

from collections.abc import Callable

import msgspec

from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.rpc_api.model_search_rpc import ModelSearch
from shared.api import gateway
from shared.api import model_search as api
from shared.api.auth import Principal
from shared.types import NodeId

_SECONDS = 15.0


class SearchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: api.Text = ""
    limit: api.Limit = 20
    #: Also ask the workers where the models fit.
    fits: bool = False


class RestModels:
    def __init__(self, search: ModelSearch, list_models: Callable[[Principal], gateway.ServedModels], node: NodeId) -> None:
        self._search = search
        self._list_models = list_models
        self._node = node

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("GET", "/api/models", self._list, "listModels", "List the served models, the default first",
                      answer=gateway.ServedModels),
            HttpRoute("GET", "/api/models/search", self._find, "searchModels", "Find models, and the machines on which they fit",
                      query=SearchQuery, answer=api.FoundModels),
        )  # fmt: skip

    async def _list(self, call: HttpCall) -> None:
        await call.answer(self._list_models(call.caller))

    async def _find(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, SearchQuery)
        await call.answer(
            await self._search.search(api.SearchModels(query.text, query.limit, query.fits), call.as_rpc(self._node, _SECONDS))
        )
