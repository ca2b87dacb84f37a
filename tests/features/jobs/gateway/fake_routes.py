"""The routes of background responses, for a gateway in memory: there are none."""

from collections.abc import Callable
from typing import Any

from features.jobs.gateway.background_responses import BackgroundResponses
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.requests.runs import Runs
from shared import errors
from shared.api import auth
from shared.api.gateway import ServedModel


class NoJobs:
    async def find(self, *_what: object) -> None:
        raise errors.NotFound("there is no such job")


def routes(_runs: Runs, _served: Callable[[auth.Principal], tuple[ServedModel, ...]]) -> tuple[HttpRoute, ...]:
    nothing: Any = NoJobs()
    return BackgroundResponses(nothing).routes()


STREAMS: dict[str, str] = {}
NEED_CREDENTIAL = [("GET", "/v1/responses/{response}"), ("POST", "/v1/responses/{response}/cancel")]
