"""Serves the endpoints that lines of jobs name, to those lines: ``line_run.current`` says who asks, and takes how it ends."""

import typing
from collections.abc import Iterable

from services.gateway.facts import line_run
from services.gateway.facts.line_run import LineRun
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.http_api.http_app import HttpAccess, HttpApp, HttpRoute
from services.gateway.requests.image_admission import ImageLimits
from shared import errors
from shared.api.auth import Principal
from shared.api.jobs import BatchEndpoint
from shared.protocol.request_memory import RequestMemory
from shared.telemetry import Metrics, tracing
from shared.types import Credential, RequestId

_ENDPOINTS = frozenset(typing.get_args(BatchEndpoint))


class _Lines:
    async def identify(self, _credential: Credential | None) -> Principal:
        return _line().principal

    def new_request_id(self) -> RequestId:
        return _line().request_id

    async def record(
        self, principal: Principal, request_id: RequestId, method: str, error: errors.AimeshError, *, seconds: float, runs_a_model: bool
    ) -> None:
        _line().failure = error


def build(
    routes: Iterable[HttpRoute], metrics: Metrics, *, memory: RequestMemory, images: ImageLimits, traces: tracing.Traces, turns: BodyTurns
) -> HttpApp:
    """``turns``: also of callers' requests."""
    lines = _Lines()
    access = HttpAccess(identify=lines.identify, quotas=None, refused=lines, new_request_id=lines.new_request_id)
    served = [route for route in routes if route.verb == "POST" and route.path in _ENDPOINTS]
    return HttpApp(served, access, metrics, memory=memory, images=images, traces=traces, turns=turns)


def _line() -> LineRun:
    found = line_run.current.get()
    assert found is not None  # only the runner of jobs calls this application
    return found
