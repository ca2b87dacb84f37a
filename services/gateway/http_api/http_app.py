"""Serves HTTP: finds the route, checks its credential, runs its handler, and turns errors into OpenAI error objects.

Routes are one table (``service``), and each names the credential it needs. The path that is checked is the path that is dispatched
(CVE-2026-49468 was a gateway where they differed).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from services.gateway.http_api import http_call, http_errors
from services.gateway.http_api.body_load import SMALL_BYTES, BodyTurns
from services.gateway.http_api.cors import CorsPolicy
from services.gateway.http_api.http_call import HEARTBEAT_SECONDS, HttpCall, Receive, Scope, Send
from services.gateway.images import image_strings
from services.gateway.limits.limit_rules import RequestLimit
from services.gateway.limits.quotas import Quotas
from services.gateway.requests.image_admission import ImageLimits
from shared import access_table, addresses, context, errors
from shared.access_rules import AccessRule, Audience
from shared.api.auth import Principal
from shared.protocol import wire
from shared.protocol.request_memory import HeldRequest, RequestMemory
from shared.rpc.authorization import Identify
from shared.spans import OpenSpan
from shared.telemetry import Metrics, logs, tracing
from shared.telemetry.metrics_registry import Exemplars
from shared.timing.admission_semaphore import AdmissionSemaphore
from shared.timing.bounded_waits import BoundedWait
from shared.types import Permission, RequestId, Role

#: Concurrent sign-ins: slightly more than auth hashes at once. Many of them in one turn of the event loop would delay all streams.
_SIGN_INS_AT_ONCE = 8
#: One address may use half of them: enough for an office behind one address to keep auth busy, while others still get in.
_SIGN_INS_OF_ONE_ADDRESS = 4
_MAX_WAIT_SECONDS = 20.0
#: A client that has gone is noticed so much later.
WATCH_AFTER_SECONDS = 0.1
#: A registration with the longest allowed values is under 2 KiB. These callers are unauthenticated, so slow bodies are cut off early.
SIGN_IN_BODY_BYTES, SIGN_IN_BODY_SECONDS = 8 * 1024, 5.0

_log = logs.get(part="http")


Handler = Callable[[HttpCall], Coroutine[None, None, None]]
IdentifyPerson = Callable[[Principal, str], Awaitable[Principal]]
#: Called for each refusal with the method, the caller if known, its address, and the error.
OnRefusal = Callable[[str, Principal | None, str, errors.AimeshError], None]


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One row of the route table, used for dispatch and for the reference."""

    verb: str
    #: One part may be a name in braces, which matches any rest of the path, slashes included. The route whose path begins longest counts.
    path: str
    handler: Handler
    #: The contract's method, used as a metrics label.
    method: str
    summary: str
    #: None if the route has no query.
    query: type[msgspec.Struct] | None = None
    #: None if the request has no body.
    body: type[msgspec.Struct] | None = None
    #: The fields of a form with a file, which the handler reads itself.
    form: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    #: What it answers with 202 while there is no ``answer`` yet; None if there always is.
    pending: type[msgspec.Struct] | None = None
    #: Types of the event data if the route streams.
    events: tuple[type[msgspec.Struct], ...] = ()
    status: int = 200
    #: Runs a model, and streams events if the body has `stream`.
    streams: bool = False
    #: The handler observes the duration, because it knows the model. True if it ``streams``.
    runs_a_model: bool = False
    #: The body is a prompt, possibly with images, and may be longer than others.
    takes_prompts: bool = False
    #: The body is JSON, whatever its media type: `curl -d` names another one.
    any_media_type: bool = False
    #: The most bytes of a body that is JSON and may be longer than others, but no prompt.
    max_body_bytes: int = 0
    #: The body isn't JSON; the most bytes that it has.
    max_raw_bytes: int = 0
    #: The handler watches for a disconnect if the call takes long.
    watches: bool = False
    access: AccessRule = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError if the access table has no rule for it."""
        object.__setattr__(self, "access", access_table.of_route(self.verb, self.path))
        object.__setattr__(self, "runs_a_model", self.runs_a_model or self.streams)


class Refusals(Protocol):
    async def record(
        self, principal: Principal, request_id: RequestId, method: str, error: errors.AimeshError, *, seconds: float, runs_a_model: bool
    ) -> None:
        """Take note of a request that failed, unless it was the gateway's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAccess:
    """Decides who may call, and from where."""

    identify: Identify
    #: See ``Callers.identify_person``; None if requests name nobody.
    identify_person: IdentifyPerson | None = None
    #: None doesn't limit.
    quotas: Quotas | None
    #: None keeps no record of them.
    refused: Refusals | None = None
    new_request_id: Callable[[], RequestId] = context.new_request_id
    on_refusal: OnRefusal = lambda *_what: None
    cors: CorsPolicy = CorsPolicy()  # noqa: RUF009 - frozen
    #: Features that other gateways have.
    list_lacking: Callable[[], Collection[str]] = tuple


class HttpApp:
    """The ASGI application for a route table."""

    def __init__(
        self,
        routes: Sequence[HttpRoute],
        access: HttpAccess,
        metrics: Metrics,
        *,
        memory: RequestMemory | None = None,
        images: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
        traces: tracing.Traces | None = None,
        turns: BodyTurns | None = None,
    ) -> None:
        """``memory``, ``images`` and ``turns`` are for long bodies."""
        self._access = access
        self._memory = memory or RequestMemory()
        self._images = images
        self._traces = traces or tracing.Traces(ratio=0.0)
        self._routes: dict[str, dict[str, HttpRoute]] = {}
        for route in routes:
            if route.verb in self._routes.setdefault(route.path, {}):
                raise ValueError(f"{route.verb} {route.path} is defined twice")
            self._routes[route.path][route.verb] = route
        #: Paths with braces by the parts before and behind them, longest first.
        self._open_ended = sorted(
            ((before, path.partition("}")[2], path) for path in self._routes for before, brace, _ in [path.partition("{")] if brace),
            key=lambda parts: (-len(parts[0]), -len(parts[1])),
        )
        self._metrics = metrics
        self._exemplars = Exemplars()
        self._concurrency = PerTenantConcurrency()
        self._turns = turns or BodyTurns()
        self._sign_ins = AdmissionSemaphore(
            _SIGN_INS_AT_ONCE,
            of_one=_SIGN_INS_OF_ONE_ADDRESS,
            seconds=_MAX_WAIT_SECONDS,
            refusal="too many sign-ins at the same time",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        if scope["type"] != "http":
            return
        request_id = self._access.new_request_id()
        with self._traces.enter(scope["method"][:20], tracing.of_headers(scope["headers"]), request_id) as span:
            span.error = await self._answer(HttpCall(scope, receive, send, request_id), scope, span)

    async def _answer(self, call: HttpCall, scope: Scope, span: OpenSpan) -> str:
        began = time.perf_counter()
        inflight = self._metrics.inflight_requests.labels(self._metrics.service)
        inflight.inc()
        method, status, runs_a_model = "unknown", "success", False
        try:
            call.ensure_unambiguous()
            route, is_preflight = self._choose(scope, call)
            if is_preflight:
                await call.answer_bytes(b"", b"text/plain")
                return ""
            method, runs_a_model = route.method, route.runs_a_model
            span.name = f"{route.verb} {route.path}"
            if route.access.who is Audience.PERSON and not (Role.CLIENT in route.access.unless and call.credential is None):
                with tracing.span("auth.check"):
                    await self._admit(route, call)
            elif route.body is not None:
                await self._sign_in(route, call)
                return ""
            await self._run(route, call)
        except errors.AimeshError as error:
            status = errors.code_of(error)
            errors.drop_tracebacks(error)
            await _fail(call, error)
            if call.principal is not None and self._access.refused is not None:
                seconds = time.perf_counter() - began
                await self._access.refused.record(
                    call.principal, call.request_id, method, error, seconds=seconds, runs_a_model=runs_a_model
                )
        except asyncio.CancelledError:
            # The task was canceled, or the gateway stops after its drain time.
            status = errors.Cancelled.code
            await _fail(call, errors.Draining("this gateway is stopping", hint="send the request again", retry_after_seconds=1))
            raise
        except Exception as error:  # the HTTP dispatcher: the one place that handles unexpected exceptions, as rpc's does
            status = errors.Internal.code
            _log.exception("http handler failed", method=method)
            errors.drop_tracebacks(error)
            await _fail(call, errors.Internal("the gateway failed", hint="search the log for the request id"))
        finally:
            call.close()
            inflight.dec()
            self._metrics.requests.labels(self._metrics.service, method, status).inc()
            for label in set(call.ignored.labels.values()):
                self._metrics.ignored_fields.labels(call.dialect, label).inc()
            if not runs_a_model:  # otherwise the pipeline observes it with the model
                duration = self._metrics.request_duration.labels(service=self._metrics.service, method=method, model="")
                duration.observe(time.perf_counter() - began, self._exemplars.of_request())
        return "" if status == "success" else status

    def _choose(self, scope: Scope, call: HttpCall) -> tuple[HttpRoute, bool]:
        """Return the route, and whether a browser only asks if it may call it."""
        preflight, cors = "", self._access.cors
        if cors.origins:
            preflight = cors.preflight_verb(scope["method"], scope["path"], call.header(b"access-control-request-method"))
        found, verb = self._match(scope["path"]), preflight or scope["method"]
        if found is None:
            raise self._missing(scope["path"], call.origin)
        by_verb, call.rest_of_path = found
        route = by_verb.get(verb)
        if route is None:
            raise errors.MethodNotAllowed(f"{scope['path']} accepts {' and '.join(by_verb)}, not {verb[:20]}")
        if cors.origins and route.access.who is Audience.PERSON and cors.covers(route.path):
            call.add_headers(cors.headers(call.header(b"origin"), preflight, call.header(b"access-control-request-headers")))
        return route, bool(preflight)

    def _match(self, path: str) -> tuple[dict[str, HttpRoute], str] | None:
        """Return the path's routes by verb, and the part of it that their braces match."""
        if "{" not in path and path in self._routes:
            return self._routes[path], ""
        for before, behind, open_ended in self._open_ended:
            if path.startswith(before) and path.endswith(behind) and len(path) > len(before) + len(behind):
                return self._routes[open_ended], path[len(before) : len(path) - len(behind)]
        return None

    def _missing(self, path: str, origin: str) -> errors.AimeshError:
        if lacking := self._access.list_lacking():
            what = f"this gateway lacks {', '.join(sorted(lacking))}, which others have"
            return errors.Unavailable(what, hint="try again, or run `aicli doctor`", retry_after_seconds=1)
        name = path.removeprefix(access_table.RPC_PATH)
        if name == path:
            return http_errors.route_missing(path, origin, lambda wanted: self._match(wanted) is not None)
        hint = "docs/reference/rpc.md lists the methods and their callers"
        if name in access_table.METHODS:
            return errors.WrongRole(f"{name} is for nodes of the mesh, not for people", hint=hint)
        return errors.UnknownMethod(f"there is no method {name[:80]!r}", hint=hint)

    async def _sign_in(self, route: HttpRoute, call: HttpCall) -> None:
        # Read the body before taking a slot, which a slow sender must not hold.
        await call.read_body(most_bytes=SIGN_IN_BODY_BYTES, most_seconds=SIGN_IN_BODY_SECONDS)

        async def run() -> None:
            async with self._sign_ins.take(addresses.client_network(call.address or "")):
                await route.handler(call)

        await until_disconnect(call, run())

    async def _run(self, route: HttpRoute, call: HttpCall) -> None:
        if route.body is None and not route.max_raw_bytes:
            await route.handler(call)
            return
        counted: Sequence[RequestLimit] = ()
        quotas = self._access.quotas if route.runs_a_model else None
        if quotas is not None:
            limits = quotas.limits(call.caller)
            if call.header(b"idempotency-key") is None:  # a repeat isn't limited
                quotas.ensure_left(limits, call.caller.tier)
            counted = self._concurrency.begin(limits)
        try:
            with call.held or self._memory.hold(0, call.caller.limited_as) as held:
                await self._read_body(route, call, held)
                if len(call.body) > SMALL_BYTES and not route.max_raw_bytes:
                    call.turns = self._turns
                handling = route.handler(call)
                await (handling if route.watches else until_disconnect(call, handling))
        except errors.AimeshError as error:
            if quotas is not None and call.has_read and not call.disconnected:
                await quotas.count_refused(call.caller, error)
            raise
        finally:
            self._concurrency.end(counted)

    async def _read_body(self, route: HttpRoute, call: HttpCall, held: HeldRequest) -> None:
        """Read the body, without its images if it is long. Raises Limited or Overloaded if there is no memory for it."""
        most_bytes = http_call.MAX_BODY_BYTES
        if route.max_raw_bytes:
            await call.read_body(most_bytes=route.max_raw_bytes, held=held, any_media_type=True, is_prompt=False)
            return
        if route.max_body_bytes:
            await call.read_body(most_bytes=route.max_body_bytes, held=held, is_prompt=False)
            return
        if route.takes_prompts:
            # Base64 takes four bytes for three; the request also has text.
            most_bytes = max(wire.MAX_REQUEST_BYTES, most_bytes + self._images.most_bytes * 4 // 3)
        await call.read_body(most_bytes=most_bytes, held=held, any_media_type=route.any_media_type)
        if len(call.body) > http_call.MAX_BODY_BYTES:
            cut = await asyncio.to_thread(image_strings.cut, call.body)
            call.body, call.images = cut.body, cut.images

    async def _admit(self, route: HttpRoute, call: HttpCall) -> None:
        """Raises what ``access_table`` and ``identify`` raise. The caller of a refused call is known, too."""
        try:
            call.principal = principal = await self._access.identify(call.credential)
            access_table.check(route.access, principal, time.time())
            access_table.check_network(principal, call.address)
            if self._access.identify_person is not None and _is_of_person(route.access, call):
                call.principal = await self._access.identify_person(principal, call.person)
                access_table.check(route.access, call.principal, time.time())
        except errors.CallerError as error:
            self._access.on_refusal(route.method, call.principal, call.address or "", error)
            raise


def _is_of_person(access: AccessRule, call: HttpCall) -> bool:
    """Return whether the request counts as that of a person whom its key names. Models are listed for the key: where nobody is served, an
    empty list would hide why."""
    return access.needs == {Permission.INFER} and Permission.NAME_USERS in (call.caller.scopes or ())


async def until_disconnect(call: HttpCall, handling: Coroutine[None, None, None]) -> None:
    """Run the handler; cancel it, and so the generation on the worker, if the client disconnects. Send heartbeats on a stream.

    The watch begins late: most calls are answered by then, and need no second task.
    """
    task, is_gone, watches = asyncio.current_task(), False, list[asyncio.Task[None]]()
    failure: Exception | None = None
    assert task is not None

    async def watch() -> None:
        nonlocal is_gone
        # A heartbeat that nobody reads says the same.
        with suppress(errors.Cancelled):
            await _wait_for_disconnect(call)
        # Servers report the end of the response as a disconnect, too.
        if not call.ended:
            is_gone = True
            task.cancel()

    try:
        async with asyncio.TaskGroup() as tasks:
            start = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, lambda: watches.append(tasks.create_task(watch())))
            try:
                await handling
            except Exception as error:  # raised below: what leaves a TaskGroup is in a cycle with it, which keeps the body
                failure = error
            finally:
                start.cancel()
                for each in watches:
                    each.cancel()
    except asyncio.CancelledError:
        if task.cancelling() > is_gone:
            raise
        raise errors.Cancelled("the client disconnected") from None
    finally:
        if is_gone:
            task.uncancel()
    if failure is not None:
        try:
            raise failure
        finally:
            # Its traceback has this frame.
            failure = None


async def _wait_for_disconnect(call: HttpCall) -> None:
    """Wait until the client disconnects; send heartbeats meanwhile."""
    wait_seconds = HEARTBEAT_SECONDS
    while True:
        try:
            with BoundedWait(wait_seconds):
                await call.wait_for_disconnect()
            return
        except TimeoutError:
            idle_seconds = call.idle_seconds()
        if idle_seconds is not None and idle_seconds >= HEARTBEAT_SECONDS:
            await call.send_comment("still here")
            idle_seconds = 0.0
        wait_seconds = HEARTBEAT_SECONDS - (idle_seconds or 0.0)


async def _fail(call: HttpCall, error: errors.AimeshError) -> None:
    if isinstance(error, errors.Cancelled) and call.disconnected and not call.started:
        _log.info("client disconnected")
        return
    try:
        await call.fail(error)
    except errors.Cancelled:
        _log.info("client disconnected before it read its error", code=errors.code_of(error))


#: Requests allowed beyond the limit, because some are just ending. The limits decide about these.
SLACK = 16


class PerTenantConcurrency:
    """Refuses requests of callers far above their concurrency limit, before reading the bodies.

    The limits would refuse these requests, too, but only after reading each body and asking Valkey.
    """

    def __init__(self) -> None:
        self._here: Counter[str] = Counter()

    def begin(self, limits: Sequence[RequestLimit]) -> Sequence[RequestLimit]:
        """Count a request against its caller's ``limits``. Pass the result to ``end``. Raises Limited."""
        counted = [limit for limit in limits if limit.kind.counter == "slots"]
        for limit in counted:
            if self._here[limit.counter] >= limit.most + SLACK:
                raise errors.Limited(
                    f"{self._here[limit.counter]} of your requests are already in progress; your limit is {limit.most} concurrent requests",
                    hint="send fewer requests at the same time",
                    retry_after_seconds=1,
                )
        for limit in counted:
            self._here[limit.counter] += 1
        return counted

    def end(self, counted: Sequence[RequestLimit]) -> None:
        for limit in counted:
            self._here[limit.counter] -= 1
            if not self._here[limit.counter]:
                del self._here[limit.counter]
