"""A service's HTTP port: serves /healthz, /readyz, /dependencies and /metrics, and passes the rest to the service's own application."""

import asyncio
import errno
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import msgspec
import uvicorn

from shared import addresses, errors, processes
from shared.api.metrics import MetricsTextFormat
from shared.api.node import NodeHealth
from shared.background.tasks import FailingTasks
from shared.node import http_connection_limits
from shared.node.http_connection import HttpConnection
from shared.node.http_tunnel import Tunnels
from shared.node.settings import NodeSettings, PublicNodeSettings
from shared.telemetry import text_formats
from shared.telemetry.readiness import Dependency
from shared.timing.bounded_waits import wait_until_set

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_CONNECTIONS = 2000
BACKLOG = 1024
#: How long a request waits while the service starts. A proxy sends requests to a new replica until its first health check fails.
OPEN_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 60
#: Of connections that are taken when the port closes.
HANDSHAKE_SECONDS = 2.0
#: A request with one of these came through a proxy, so the connection's address is not the client's.
_FORWARDING = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
    | {b"cf-connecting-ip", b"true-client-ip"}
)

_json = msgspec.json.Encoder().encode


class ObservedNode(Protocol):
    """The part of a node that its HTTP port reports about."""

    service_name: str
    dead_tasks: list[str]
    failing: FailingTasks

    async def health(self) -> NodeHealth: ...

    async def dependencies(self) -> tuple[Dependency, ...]: ...

    def metrics_text(self, form: MetricsTextFormat) -> str: ...


class HttpService(Protocol):
    def asgi(self) -> App | None: ...


@runtime_checkable
class SpeaksForTheMesh(Protocol):
    """A service whose /metrics covers more than itself."""

    async def metrics_text(self, form: MetricsTextFormat) -> str: ...


class Operations:
    """Serves what every service has over HTTP, and passes the rest to ``app``."""

    def __init__(self, node: ObservedNode, settings: NodeSettings) -> None:
        self._node = node
        self._settings = settings
        self._metrics_text: Callable[[MetricsTextFormat], Awaitable[str]] | None = None
        self._app: App | None = None
        self._opened = asyncio.Event()
        self._routes = {"/healthz": self._healthz, "/readyz": self._readyz, "/dependencies": self._dependencies, "/metrics": self._metrics}

    def open(self, service: HttpService) -> None:
        """Start passing requests to the service's own application."""
        self._app = service.asgi()
        if isinstance(service, SpeaksForTheMesh):
            self._metrics_text = service.metrics_text
        self._opened.set()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if self._app is not None and scope["type"] == "http" and scope["path"] not in self._routes:
            return self._app(scope, receive, send)
        return self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # uvicorn runs without lifespan, and no service uses WebSocket
        route = self._routes.get(scope["path"])
        if route is not None and scope["method"] in {"GET", "HEAD"}:
            status, body, content_type = await route(scope)
            await respond(send, status, body, content_type)
        elif route is not None:
            await respond(send, 405, _problem("method_not_allowed", f"{scope['path']} answers GET"))
        elif not await wait_until_set(self._opened, OPEN_SECONDS):
            await respond(send, 503, _problem("unavailable", "this service is starting; /readyz says what it waits for"))
        elif self._app is not None:
            await self._app(scope, receive, send)
        else:
            await respond(send, 404, _problem("not_found", f"this port has {', '.join(self._routes)}; the API is on the gateway's port"))

    async def _healthz(self, scope: Scope) -> tuple[int, bytes, str]:
        told: dict[str, object] = {"status": "alive", "service": self._node.service_name}
        may_observe = self._may_observe(scope)
        if dead := self._node.dead_tasks:
            told["status"] = "failed"
            if may_observe:
                told["deadTasks"] = dead
        elif failing := self._node.failing.names():
            # It answers, and they start again, so nobody should restart it.
            told["status"] = "degraded"
            if may_observe:
                told["failingTasks"] = failing
        return 503 if dead else 200, _json(told), "application/json"

    async def _readyz(self, scope: Scope) -> tuple[int, bytes, str]:
        health = await self._node.health()
        told = health if self._may_observe(scope) else {"ready": health.ready}
        return 200 if health.ready else 503, _json(told), "application/json"

    async def _dependencies(self, scope: Scope) -> tuple[int, bytes, str]:
        service, found = self._node.service_name, await self._node.dependencies()
        if self._may_observe(scope):
            return 200, _json({"service": service, "dependencies": found}), "application/json"
        state = "ok" if all(each.state == "ok" for each in found) else "failing"
        return 200, _json({"service": service, "state": state}), "application/json"

    def _may_observe(self, scope: Scope) -> bool:
        return not isinstance(self._settings, PublicNodeSettings) or may_observe(scope, self._settings)

    async def _metrics(self, scope: Scope) -> tuple[int, bytes, str]:
        if not self._settings.metrics_enabled:
            return 404, _problem("not_found", "METRICS_ENABLED=false turned the metrics off"), "application/json"
        if not self._may_observe(scope):
            why = "/metrics is for this machine, METRICS_NETWORKS and requests with METRICS_TOKEN; the metrics service has all metrics"
            return 403, _problem("not_allowed", why), "application/json"
        form = text_formats.choose(scope["headers"])
        text = await self._metrics_text(form) if self._metrics_text is not None else self._node.metrics_text(form)
        return 200, text.encode(), text_formats.CONTENT_TYPES[form]


async def answer_joining(scope: Scope, _receive: Receive, send: Send) -> None:
    """The application of a process that is not in its mesh yet: it works, and is not ready."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/healthz":
        await respond(send, 200, _json({"status": "alive"}))
    else:
        await respond(send, 503, _problem("unavailable", "this node has not joined its mesh yet; its log says why"))


def listen(host: str, port: int, variable: str) -> socket.socket:
    """Return a listening socket. Raises BadSettings, which names the variable, if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            who = processes.listener_on(port)
            raise errors.BadSettings(f"port {port} is taken by {who}", hint=f"stop it, or set {variable} to a free port") from error
        raise errors.BadSettings(
            f"cannot listen on {addresses.host_port(host, port)}: {error.strerror}", hint=f"set {variable} to another port"
        ) from error
    sock.listen(BACKLOG)
    return sock


class HttpServer:
    """uvicorn on one socket as a coroutine, without signal handlers and lifespan, and with a drain that we start."""

    def __init__(self, app: App, sock: socket.socket, settings: NodeSettings) -> None:
        trusted = map(http_connection_limits.network, settings.trusted_proxies)
        limits = http_connection_limits.HttpConnectionLimits[HttpConnection](
            MAX_CONNECTIONS, settings.http_connections_per_address, trusted
        )
        self._tunnels = Tunnels(settings.tunnel)
        self._server = _Server(
            uvicorn.Config(
                app,
                # It would take an app whose call is no coroutine for one of ASGI 2.
                interface="asgi3",
                # Override uvicorn's own default and environment variable.
                forwarded_allow_ips=list(settings.trusted_proxies),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                loop="none",
                # It asks for a class, and calls it.
                http=partial(HttpConnection, limits=limits, tunnels=self._tunnels),  # type: ignore[arg-type]
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(settings.drain_seconds),
                ssl_certfile=settings.tls_cert_file,
                ssl_keyfile=settings.tls_key_file,
            )
        )
        self._socket = sock

    async def run(self) -> None:
        """Serve until ``stop``, then let running requests end."""
        async with asyncio.TaskGroup() as self._tunnels.opening:
            await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        self._server.should_exit = True


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take the connections that the system has accepted for us: closing the socket would reset them, and what a proxy sent is lost."""
        waiting = [connection for sock in sockets or () for connection in _accept_waiting(sock)]
        # A failed handshake is the client's.
        await asyncio.gather(*map(self._take, waiting), return_exceptions=True)
        await super().shutdown(sockets)

    async def _take(self, connection: socket.socket) -> None:
        tls, seconds = self.config.ssl, HANDSHAKE_SECONDS if self.config.ssl else None
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=tls, ssl_handshake_timeout=seconds)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes it for other connections."""
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: the program handles signals."""
        yield


def _accept_waiting(sock: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections in the system's queue."""
    for _ in range(BACKLOG):
        try:
            connection, _address = sock.accept()
        except OSError:
            return  # there is none
        connection.setblocking(False)
        yield connection


def _problem(code: str, message: str) -> bytes:
    return error_body(code, message, "service_unavailable_error" if code == errors.Unavailable.code else "invalid_request_error")


def error_body(code: str, message: str, kind: str) -> bytes:
    """Return an error in the format of OpenAI's API, which clients know."""
    return _json({"error": {"message": message, "type": kind, "code": code, "param": None}})


async def respond(
    send: Send, status: int, body: bytes, content_type: str = "application/json", headers: Mapping[bytes, bytes] | None = None
) -> None:
    fixed = {b"content-type": content_type.encode(), b"content-length": str(len(body)).encode(), b"cache-control": b"no-store"}
    if status == 503:
        fixed[b"retry-after"] = b"1"
    await send({"type": "http.response.start", "status": status, "headers": list({**fixed, **(headers or {})}.items())})
    await send({"type": "http.response.body", "body": body})


def may_observe(scope: MutableMapping[str, Any], settings: PublicNodeSettings) -> bool:
    """Decide who may read /metrics, and why a service isn't ready, on a public port: only programs that an operator has configured. The
    metrics service collects every node's metrics over the mesh, and reasons name addresses and models. ``scope`` is ASGI's, with the client
    address that trusted proxies reported. Pure."""
    headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    sent = [value for name, value in headers if name == b"authorization"]
    if settings.metrics_token is not None and len(sent) == 1:
        wanted = b"Bearer " + settings.metrics_token.encode()
        if hmac.compare_digest(sent[0], wanted):
            return True
    host, port = scope.get("client") or ("", 0)
    address = addresses.parse(host)
    if address is None:
        return False
    is_forwarded = any(name in _FORWARDING for name, _ in headers)
    if address.is_loopback and not is_forwarded:
        return True
    # uvicorn uses port 0 for an address reported by a trusted proxy. Otherwise a forwarded address is the proxy's own.
    is_known = not is_forwarded or port == 0
    return is_known and any(address in http_connection_limits.network(each) for each in settings.metrics_networks)
