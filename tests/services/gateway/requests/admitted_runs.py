"""Runs of prompts that were admitted, without a gateway around them."""

from datetime import UTC, datetime
from typing import Any

from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.upstream_prices import UpstreamPrices
from services.gateway.requests.answers import TextAnswer
from services.gateway.requests.asked import AskedPrompt
from services.gateway.requests.plan import Plan
from services.gateway.requests.run import Run
from services.gateway.requests.targets import ServingTarget, TargetCall, TargetChoice
from shared.api.auth import Principal
from shared.api.generation import ChatMessage
from shared.api.inference import ModelConfig, ProcessPrompt
from shared.context import new_request_id
from shared.types import ModelName
from tests.services.gateway.fakes import OWNER

MODEL = ModelName("smollm2")


def admitted_run(caller: Principal = OWNER, route: RouteUse | None = None, began_at: datetime | None = None) -> Run:
    """Return a run that began at 0 by the gateway's clock."""
    run = Run(AskedPrompt.labels, caller, new_request_id(), now=0.0, seconds=30, began_at=began_at or datetime.now(UTC))
    target = ServingTarget(MODEL, route)
    prompt = ProcessPrompt((ChatMessage("user", "hi"),), ModelConfig(model=MODEL), run.request_id)
    requirements: Any = None  # nobody looks for a worker
    plan = Plan(TargetChoice((target,), MODEL, UpstreamPrices()), (TargetCall(target, requirements, prompt),))
    run.admitted(plan, TextAnswer(plan, run.admission))
    return run
