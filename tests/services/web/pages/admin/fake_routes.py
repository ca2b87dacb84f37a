"""The fake mesh, routes and rollouts of the gateway."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec

from shared import errors
from shared.api import configuration as api
from shared.api.configuration import OPEN_STATES, RolloutAction, RolloutPlan, RolloutState
from shared.config_documents import ConfigKind, Sticky
from shared.types import Credential, MicroCredits
from tests.services.web.fake_mesh import NOW

TARGETS = (
    api.RouteTargetState("local", "smollm2", 100.0, None, 2),
    api.RouteTargetState("next", "llama-3-8b", 0.0, None, 1),
    api.RouteTargetState("api", "gpt", None, 1, 0, MicroCredits(250_000), MicroCredits(1_000_000)),
)
_ENDS = {RolloutAction.PROMOTE: RolloutState.PROMOTED, RolloutAction.ABORT: RolloutState.ROLLED_BACK}


def rollout(route: str = "assistant", **changed: Any) -> api.RolloutSummary:
    plain = api.RolloutSummary(
        id=uuid4(),
        route=route,
        plan=RolloutPlan("next", "local"),
        state=RolloutState.RUNNING,
        share=10.0,
        step=0,
        step_began_at=NOW,
        step_requests=40,
        reason="",
        started_at=NOW,
        ended_at=None,
    )
    return msgspec.structs.replace(plain, **changed)


def point(minute: int, bad: int, outcomes: int, half_width: float | None = 0.1) -> api.RolloutPoint:
    """Return the state after so many minutes. The baseline has four times as many outcomes, none of them bad."""
    interval = api.RolloutInterval("errors", bad, outcomes, 0, 4 * outcomes, bad / outcomes if outcomes else 0.0, half_width)
    arms = arm("next", outcomes), arm("local", 4 * outcomes)
    return api.RolloutPoint(NOW + timedelta(minutes=minute), 10.0, arms, (interval,))


def arm(target: str, requests: int) -> api.RolloutArm:
    return api.RolloutArm(target, requests, 120, 300, 41.25, 9_000, 2_500.0)


class FakeRoutes:
    """Handlers, mixed into ``AdminMesh``. A test reads and writes the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: list[api.RouteState] = []
        self.versions: list[api.ConfigVersion] = []
        #: Newest first.
        self.rollouts: list[api.RolloutSummary] = []
        self.points: tuple[api.RolloutPoint, ...] = ()
        self.tried = api.TriedRoute("assistant", 3, (api.TriedTarget("local", "smollm2", 995, None, ""),), 5)

    def add_route(self, name: str = "assistant", *bodies: str) -> None:
        """Add a route with a version for each text."""
        texts = bodies or ("targets: []\n",)
        self.routes.append(api.RouteState(name, len(texts), Sticky.CONVERSATION, TARGETS))
        for number, text in enumerate(texts, 1):
            version = api.ConfigVersion(
                ConfigKind.ROUTE, name, number, 10 + number, text, False, "applied", "root", f"note {number}", NOW, number == len(texts)
            )
            self.versions.insert(0, version)

    def _list_routes(self, _request: api.ListRoutes, _: Credential | None) -> api.RouteStates:
        return api.RouteStates(tuple(self.routes))

    def _try_route(self, request: api.TryRoute, _: Credential | None) -> api.TriedRoute:
        self._find_route(request.name)
        return self.tried

    def _list_config_versions(self, request: api.ListConfigVersions, _: Credential | None) -> api.ConfigVersions:
        found = [version for version in self.versions if version.name == request.name]
        return api.ConfigVersions(tuple(found[: request.limit]))

    def _rollback_config(self, request: api.RollbackConfig, _: Credential | None) -> api.AppliedConfig:
        if not any((version.name, version.version) == (request.name, request.version) for version in self.versions):
            raise errors.NotFound("there is no such version")
        return api.AppliedConfig(20, ())

    def _list_rollouts(self, request: api.ListRollouts, _: Credential | None) -> api.Rollouts:
        found = [each for each in self.rollouts if request.route in {None, each.route}]
        return api.Rollouts(tuple(each for each in found if each.state in OPEN_STATES or not request.only_open))

    def _get_rollout(self, request: api.GetRollout, _: Credential | None) -> api.RolloutDetails:
        found = self._find_rollout(request.id)
        errors_ = api.RolloutCondition("errors", 0.01, 9, 41, 2, 388, 0.21, 0.1, 2300.0, "next is worse by at least 11.0 points")
        cost = api.RolloutCondition("cost", 1.2, 0, 0, 0, 0, 0.0, None, 1.0, "not enough outcomes yet")
        thumbs = api.RolloutCondition("thumbs", None, 1, 4, 0, 0, 0.0, None, 1.0, "not enough outcomes yet")
        events = (
            api.RolloutEvent(NOW, RolloutState.RUNNING, 10.0, "", "root"),
            api.RolloutEvent(NOW, found.state, found.share, found.reason, ""),
        )
        arms = arm(found.plan.candidate, 41), arm(found.plan.baseline, 388)
        return api.RolloutDetails(found, arms, (errors_, cost, thumbs), events, 450, self.points if request.points else ())

    def _start_rollout(self, request: api.StartRollout, _: Credential | None) -> api.RolloutSummary:
        self._find_route(request.route)
        if request.candidate == "local":
            raise errors.BadRequest("candidate and baseline are the same target", hint="name another target")
        self.rollouts.insert(0, rollout(request.route, plan=RolloutPlan(request.candidate, "local", steps=request.steps)))
        return self.rollouts[0]

    def _change_rollout(self, request: api.ChangeRollout, _: Credential | None) -> api.RolloutSummary:
        place = next(number for number, each in enumerate(self.rollouts) if each.route == request.route and each.state in OPEN_STATES)
        state = _ENDS.get(request.action, RolloutState.PAUSED if request.action is RolloutAction.PAUSE else RolloutState.RUNNING)
        changed = msgspec.structs.replace(self.rollouts[place], state=state, reason=request.note)
        self.rollouts[place] = changed
        return changed

    def _find_route(self, name: str) -> api.RouteState:
        found = next((route for route in self.routes if route.name == name), None)
        if found is None:
            raise errors.NotFound(f"there is no route {name!r}")
        return found

    def _find_rollout(self, wanted: UUID | None) -> api.RolloutSummary:
        found = next((each for each in self.rollouts if each.id == wanted), None)
        if found is None:
            raise errors.NotFound("there is no such rollout")
        return found
