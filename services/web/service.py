"""Run the web service: open the pass-through, build the pages, and check auth and the gateway."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar

from litestar.types import ASGIApp

from services.web import application, csrf, features, rendering, request_context, sessions
from services.web.http import front_app, passthrough
from services.web.settings import WebSettings
from shared.api.gateway import Check
from shared.background.tasks import keep
from shared.node import Node
from shared.node.lifecycle import background
from shared.types import Role


class WebService:
    """The web service. It serves no RPC methods and has no state that replicas need to share."""

    role: ClassVar[Role] = Role.WEB

    def __init__(self, node: Node, pages: ASGIApp, gateway: passthrough.Passthrough, *, always_over_tls: bool) -> None:
        self._node = node
        self._gateway = gateway
        self._front_app = front_app.FrontApp(pages, gateway, node.metrics, node.traces, always_over_tls=always_over_tls)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: WebSettings, node: Node) -> AsyncIterator["WebService"]:
        seconds = settings.request_timeout_seconds + settings.queue_start_seconds
        opening = passthrough.Passthrough.open(
            settings.gateway_url, settings.gateway_ca_file, settings.web_hop_secret, request_seconds=seconds
        )
        async with opening as gateway, background() as tasks:
            app = request_context.App(
                settings=settings,
                caller=node.rpc,
                gateway=gateway,
                sessions=sessions.WebSessions(node.rpc, time.monotonic),
                tokens=csrf.FormTokens(settings.secret, os.urandom),
                renderer=rendering.Renderer.load(
                    sells=settings.money == "on",
                    has_pricing=settings.pricing_page == "on",
                    tabs=[tab for part in features.parts() for tab in part.tabs],
                ),
                now=lambda: datetime.now(UTC),
            )
            tasks.create_task(keep("alerts", partial(app.alert_poller.run, node.rpc)))
            tasks.create_task(keep("packages", partial(app.package_fetcher.run, settings.package_index)))
            yield cls(node, application.build(app), gateway, always_over_tls=settings.public_url.startswith("https://"))

    async def checks(self) -> tuple[Check, ...]:
        auth_is_there = bool(self._node.directory.usable(Role.AUTH))
        gateway_problem = await self._gateway.healthy()
        return (
            Check("auth", auth_is_there, "" if auth_is_there else "no auth node is online; start it with `python -m services.auth`"),
            Check("gateway", not gateway_problem, gateway_problem),
        )

    def asgi(self) -> ASGIApp:
        return self._front_app
