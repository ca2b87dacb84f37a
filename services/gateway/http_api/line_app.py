"""Serves endpoints to the lines of jobs that name them: ``line_run.current`` says who asks, and takes how it ends."""

from collections.abc import Collection, Iterable

from services.gateway.facts import line_run
from services.gateway.facts.line_run import LineRun
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.http_api.http_app import HttpAccess, HttpApp, HttpRoute
from services.gateway.requests.image_admission import ImageLimits
from shared import errors
from shared.api.auth import Principal
from shared.protocol.request_memory import RequestMemory
from shared.telemetry import Metrics, tracing
from shared.types import Credential, RequestId


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
    routes: Iterable[HttpRoute],
    endpoints: Collection[str],
    metrics: Metrics,
    *,
    memory: RequestMemory,
    images: ImageLimits,
    traces: tracing.Traces,
    turns: BodyTurns,
) -> HttpApp:
    """``endpoints``: the paths that lines may name. ``turns``: also of callers' requests."""
    lines = _Lines()
    access = HttpAccess(identify=lines.identify, quotas=None, refused=lines, new_request_id=lines.new_request_id)
    served = [route for route in routes if route.verb == "POST" and route.path in endpoints]
    return HttpApp(served, access, metrics, memory=memory, images=images, traces=traces, turns=turns)


def _line() -> LineRun:
    found = line_run.current.get()
    assert found is not None  # only the runner of jobs calls this application
    return found
