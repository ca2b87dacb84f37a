"""Show the models, where they run and their prices. Authorized users can load and unload them, and administrators add servers."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency

from services.web import live_updates
from services.web.http import forms
from services.web.http.event_response import EventResponse
from services.web.pages import model_view
from services.web.pages.model_view import ModelPullView, ServedModelView
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import access_table, errors
from shared.api import configuration, gateway, ledger, metrics, servers
from shared.api.gateway import LoadOnWorker, ModelPlace, UnloadOnWorkers
from shared.api.metrics import History, HistoryGrouping
from shared.api.servers import ServerRow
from shared.config_documents import ConfigKind, ServerDocument, ServerKind
from shared.lists.columns import Listing
from shared.lists.nodes import short
from shared.lists.servers import SERVERS
from shared.telemetry.answer_instruments import AnswerInstruments
from shared.types import LoadPurpose, ModelName, NodeId, Permission

#: Loading a large model from a slow disk takes minutes.
ORDER_SECONDS = 120.0


class ModelAction(StrEnum):
    LOAD = "load"
    PIN = "pin"
    UNPIN = "unpin"
    UNLOAD = "unload"


_DONE: Mapping[str, str] = {
    ModelAction.LOAD: "Model loaded.",
    ModelAction.PIN: "Model loaded and pinned.",
    ModelAction.UNPIN: "Model unpinned. Its worker may unload it to make room.",
    ModelAction.UNLOAD: "Model unloaded.",
    "server": "Server saved. Workers serve its models within seconds.",
    "removed": "Server removed. Running answers finish.",
}


class OrderForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    act: str
    #: Empty loads on the least busy worker, or for a purpose on all, and unloads from all.
    worker: str = ""
    #: What to load it for; empty leaves it as it is.
    purpose: str = ""


class ServerForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    url: str = ""
    kind: str = ServerKind.OPENAI
    #: Empty for none. If ``act`` is replace and the URL is the same, the stored one stays.
    key: str = ""
    #: Separated by commas; empty for all.
    models: str = ""
    #: In tokens; empty for what the server says.
    context: str = ""
    #: yes or no; empty for what the server says.
    tools: str = ""
    #: replace or remove; empty adds one.
    act: str = ""


NOTHING_TYPED = ServerForm()


@dataclass(frozen=True, slots=True)
class OrderRefusal:
    """A worker that refused an order."""

    short: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsPage:
    models: tuple[ServedModelView, ...]
    #: Running downloads, for users who may load models.
    pulls: tuple[ModelPullView, ...]
    blank_pull: ClassVar[ModelPullView] = ModelPullView()
    may_order: bool
    #: Whether nodes and prices are available.
    has_places: bool
    has_prices: bool
    #: Why no model is served, if the gateway knows.
    why_none: str
    #: What some workers work without, or their models wait for; empty if nothing.
    warning: str
    #: Set in the response to an order that some workers refused.
    refusals: tuple[OrderRefusal, ...] = ()
    #: Only for administrators; None if they are unavailable.
    servers: tuple[ServerRow, ...] | None = None
    server_listing: ClassVar[Listing[ServerRow]] = SERVERS
    server_kinds: ClassVar[Mapping[str, str]] = {"openai": "OpenAI-compatible", "vllm": "vLLM", "ollama": "Ollama"}
    #: Without the key.
    typed: ServerForm = NOTHING_TYPED
    #: What to know about the server that was saved.
    warnings: tuple[str, ...] = ()


@get("/models")
async def show_models(page_request: NamedDependency[PageRequest]) -> Page:
    return await _page(page_request)


@post("/models/orders")
async def order(page_request: NamedDependency[PageRequest]) -> Page:
    """Load or unload a model. The gateway authorizes it."""
    form = await page_request.read_form(OrderForm)
    try:
        act, places = await _apply(page_request, form)
    except errors.DeadlineExceeded:
        hint = "it may still succeed; reload this page in a minute"
        return await _page(page_request, problem=errors.DeadlineExceeded(f"no worker finished within {ORDER_SECONDS:.0f} s", hint=hint))
    except (errors.CallerError, errors.PeerError) as error:
        return await _page(page_request, problem=error)
    refusals = tuple(OrderRefusal(short(place.worker), place.detail) for place in places if not place.state)
    if refusals:
        return await _page(page_request, refusals=refusals)
    return page_request.redirect(f"/models?done={act}")


@post("/models/servers")
async def save_server(page_request: NamedDependency[PageRequest]) -> Page:
    """Add, change or remove a server. The gateway authorizes it, and lets a worker try the server."""
    form = await page_request.read_form(ServerForm)
    try:
        applied = await page_request.submit(configuration.apply_config, _change_of(form))
    except (errors.CallerError, errors.PeerError) as error:
        return await _page(page_request, problem=error, typed=msgspec.structs.replace(form, key=""))
    if applied.warnings:
        return await _page(page_request, warnings=applied.warnings)
    return page_request.redirect(f"/models?done={'removed' if form.act == 'remove' else 'server'}")


def _change_of(form: ServerForm) -> configuration.ApplyConfig:
    """Raises BadRequest."""
    body = None
    if form.act != "remove":
        models = tuple(name.strip() for name in form.models.split(",") if name.strip())
        server = ServerDocument(
            url=form.url.strip(),
            kind=forms.read_choice(ServerKind, form.kind, "kind of server"),
            key=form.key.strip() or None,
            models=models,
            context=forms.read_number(form.context, "the context", ServerDocument, "context"),
            tools={"yes": True, "no": False}.get(form.tools),
        )
        body = msgspec.json.encode(server).decode()
    document = configuration.ConfigDocument(ConfigKind.SERVER, form.name.strip(), body)
    return configuration.ApplyConfig(documents=(document,), only_new=not form.act)


async def _apply(page_request: PageRequest, form: OrderForm) -> tuple[ModelAction, tuple[ModelPlace, ...]]:
    if form.act not in set(ModelAction) or form.purpose not in ("", *LoadPurpose):
        raise errors.BadRequest("unknown action", hint="reload the Models page and use its buttons")
    act = ModelAction(form.act)
    model, worker = ModelName(form.model), NodeId(form.worker) if form.worker else None
    if act is ModelAction.UNLOAD:
        unloaded = await page_request.submit(gateway.unload_model, UnloadOnWorkers(model, worker), deadline_seconds=ORDER_SECONDS)
        return act, unloaded.places
    pin = {ModelAction.LOAD: None, ModelAction.PIN: True, ModelAction.UNPIN: False}[act]
    request = LoadOnWorker(model, worker, pin, LoadPurpose(form.purpose) if form.purpose else None)
    loaded = await page_request.submit(gateway.load_model, request, deadline_seconds=ORDER_SECONDS)
    return act, loaded.places


async def _page(
    page_request: PageRequest,
    *,
    refusals: tuple[OrderRefusal, ...] = (),
    problem: errors.AimeshError | None = None,
    typed: ServerForm = NOTHING_TYPED,
    warnings: tuple[str, ...] = (),
) -> Page:
    served, history, nodes, prices, added = await asyncio.gather(
        _served(page_request),
        _drafts(page_request),
        page_request.fetch(gateway.list_nodes, gateway.ListNodes()),
        page_request.fetch(ledger.list_prices, ledger.ListPrices()),
        _servers(page_request),
    )
    if not isinstance(served, gateway.ServedModels):
        problem, served = problem or served, gateway.ServedModels(())
    may_order = _may_order(page_request)
    view = ModelsPage(
        models=model_view.join(
            served.models, nodes.nodes if nodes else None, prices.prices if prices else None, history, unserved_too=may_order
        ),
        pulls=model_view.pulls(nodes.nodes) if nodes and may_order else (),
        may_order=may_order,
        has_places=nodes is not None,
        has_prices=prices is not None,
        why_none=served.why_none,
        warning=served.warning,
        refusals=refusals,
        servers=added,
        typed=typed,
        warnings=warnings,
    )
    return page_request.page("models.html", view, problem=problem, notices=_DONE)


def _may_order(page_request: PageRequest) -> bool:
    return bool(access_table.permissions_of(page_request.person.user.role, None) & {Permission.WRITE_MODELS, Permission.EVERYTHING})


@get("/live/models")
async def follow_pulls(page_request: NamedDependency[PageRequest]) -> EventResponse:
    """Stream the running downloads to an open page."""
    if not _may_order(page_request):
        raise errors.NotAllowed("only users who may load models can follow downloads", hint="ask an administrator for access")

    async def read() -> live_updates.Values:
        rows = await page_request.call(gateway.list_nodes, gateway.ListNodes(), deadline_seconds=PAGE_CALL_SECONDS)
        return {"pulls": [asdict(line) for line in model_view.pulls(rows.nodes)]}

    return page_request.follow(read)


async def _drafts(page_request: PageRequest) -> History | None:
    """Return the last hour; None if it is unavailable, as it is to most users."""
    if not page_request.is_administrator:
        return None
    now = page_request.app.now()
    wanted = metrics.GetHistory((AnswerInstruments.drafted_tokens.name,), now - timedelta(hours=1), now, 300, (HistoryGrouping.MODEL,))
    try:
        return await page_request.call(metrics.get_history, wanted, deadline_seconds=PAGE_CALL_SECONDS)
    except errors.AimeshError:
        return None


async def _servers(page_request: PageRequest) -> tuple[ServerRow, ...] | None:
    found = await page_request.fetch(servers.list_servers, servers.ListServers()) if page_request.is_administrator else None
    return None if found is None else found.servers


async def _served(page_request: PageRequest) -> gateway.ServedModels | errors.PeerError:
    try:
        return await page_request.call(gateway.list_models, gateway.ListModels())
    except errors.PeerError as error:
        return error
