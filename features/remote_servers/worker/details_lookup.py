"""Asks a server for what its list doesn't say of its models: their context, and what they can do."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from features.remote_servers.worker.http_server_client import ProbeReply, Server
from features.remote_servers.worker.remote_models import ModelListing
from features.remote_servers.worker.rules.dialects import DialectRow
from features.remote_servers.worker.rules.event_stream import UNREADABLE
from features.remote_servers.worker.rules.model_details import ModelDetails, ModelPage
from shared.types import Ability

_ASK_SECONDS = 2.0
_MAX_PAGE_BYTES = 1024 * 1024
#: Of a list of 256, asked for four at once; the rest follows with the next lists.
_MAX_ASKED, _AT_ONCE = 64, 4


@dataclass(slots=True)
class DetailsLookup:
    server: Server
    #: By name and digest: what a model is asked for doesn't change.
    _of_models: dict[tuple[str, str], ModelDetails] = field(default_factory=dict)

    async def fill(self, row: DialectRow, listed: tuple[ModelListing, ...]) -> tuple[ModelListing, ...]:
        """Return the models with what the server says. What it doesn't say in time stays unknown."""
        common = await self._common(row)
        if row.model_page is not None:
            await self._ask_each(row.model_page, listed)
        return tuple(self._filled(model, common) for model in listed)

    def details_of(self, model: ModelListing) -> ModelDetails:
        """Return what the model itself was asked for."""
        return self._of_models.get((model.own_name, model.digest), ModelDetails())

    async def _common(self, row: DialectRow) -> Mapping[str | None, ModelDetails]:
        if row.details_page is None:
            return {}
        reply = await self.server.probe(row.details_page.path, _ASK_SECONDS, most=_MAX_PAGE_BYTES)
        try:
            return row.details_page.read(reply.body) if _is_whole(reply) else {}
        except UNREADABLE:
            return {}

    async def _ask_each(self, page: ModelPage, listed: tuple[ModelListing, ...]) -> None:
        present = {(model.own_name, model.digest) for model in listed}
        self._of_models = {key: details for key, details in self._of_models.items() if key in present}
        room = asyncio.Semaphore(_AT_ONCE)

        async def ask(name: str, digest: str) -> None:
            async with room:
                body = msgspec.json.encode({"model": name})
                reply = await self.server.probe(page.path, _ASK_SECONDS, most=_MAX_PAGE_BYTES, body=body)
            if _is_whole(reply):
                try:
                    self._of_models[name, digest] = page.read(reply.body)
                except UNREADABLE:
                    self._of_models[name, digest] = ModelDetails()

        unknown = sorted(present - self._of_models.keys())[:_MAX_ASKED]
        async with asyncio.TaskGroup() as tasks:
            for name, digest in unknown:
                tasks.create_task(ask(name, digest))

    def _filled(self, model: ModelListing, common: Mapping[str | None, ModelDetails]) -> ModelListing:
        own, every = self.details_of(model), common.get(model.own_name) or common.get(None) or ModelDetails()
        only_embeds = model.only_embeds or own.only_embeds or every.only_embeds
        upstream = self.server.source.upstream
        abilities = tuple(dict.fromkeys((*model.abilities, *upstream.abilities((*own.abilities, *every.abilities)))))
        return replace(
            model,
            context_tokens=model.context_tokens or every.context_tokens or own.context_tokens,
            only_embeds=only_embeds,
            quantization=own.quantization or every.quantization,
            abilities=(Ability.EMBEDDINGS,) if only_embeds else abilities,
        )


def _is_whole(reply: ProbeReply) -> bool:
    return reply.status == 200 and not reply.is_cut
