"""The trace of a request that lost its worker, as a collector gets it: complete, including spans from before the collector was up."""

import json
import secrets
from collections import Counter

from shared import context
from shared.api import gateway
from shared.api.gateway import InferenceRequest
from tests import otlp_receiver
from tests.chaos import streams
from tests.otlp_receiver import Received, Receiver
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

#: The root spans, depending on the endpoint.
ROOTS = ("gateway.processInferenceRequest", "POST /v1/chat/completions")
#: A request that another worker resumed: what each service does, in any order. The spans of the killed worker died with it.
EXPECTED = {
    ("gateway", "auth.check"): 1,
    ("gateway", "inference"): 1,
    ("gateway", "ratelimit.acquire"): 1,
    ("gateway", "ledger.reserve"): 1,
    ("gateway", "route.select"): 2,
    ("gateway", "chat echo"): 2,
    ("gateway", "ledger.settle"): 1,
    ("inference", "inference.processPrompt"): 1,
    ("inference", "chat echo"): 1,
    ("inference", "queue"): 1,
    ("inference", "prefill"): 1,
    ("inference", "decode"): 1,
}


async def test_a_request_that_failed_over_has_one_whole_trace(
    stack: RunningStack, ann: Person, api_client: ApiClient, otlp_port: int
) -> None:
    before = await _ask(api_client, ann)
    told = await streams.kill_workers(stack, ann, kills=1, count=20)
    assert told.wrong == []
    with otlp_receiver.receiving(otlp_port) as collector:
        found = await until(
            lambda: _failed_over(collector), seconds=40, what="the collector has the whole trace of a request that failed over"
        )
        assert collector.trace(before), "what was made before the collector came is there as well"
        await until(lambda: _has_log(collector, before), what="the collector has what the gateway logged about it")
    [first, second] = sorted((one for one in found if (one.service, one.name) == ("gateway", "chat echo")), key=_start)
    assert (first.failure, second.failure) == ("link_lost", "")
    assert first.attribute("server.address") != second.attribute("server.address")
    [worker] = [one for one in found if one.name == "inference.processPrompt"]
    assert worker.span["parentSpanId"] == second.span["spanId"]
    [root] = [one for one in found if one.name in ROOTS]
    assert root.failure == "", "its caller saw a pause"
    known = {one.span["spanId"] for one in found}
    assert all(one.span["parentSpanId"] in known for one in found if one is not root), "every span is a part of another"
    assert all(_start(root) <= _start(one) for one in found)


async def test_an_administrator_sees_a_trace_with_aicli(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    trace_id = await _ask(api_client, ann)

    async def shown() -> str:
        done = await stack.aicli("trace", trace_id)
        return done.out if "decode" in done.out and ROOTS[0] in done.out else ""

    tree = await until(shown, seconds=10, what="the trace is there")
    lines = [line for line in tree.splitlines() if "  inference  " not in line]
    assert lines[1].startswith(ROOTS[0])
    assert any(line.startswith("    ledger.reserve") for line in lines), tree
    refused = await stack.aicli("trace", trace_id, "--json", AICLI_API_KEY=ann.key.secret)
    assert json.loads(refused.err)["error"]["code"] == "not_allowed"
    unknown = await stack.aicli("trace", "f" * 32, "--json")
    assert json.loads(unknown.err)["error"]["code"] == "not_found"


async def _ask(api_client: ApiClient, person: Person) -> str:
    """Send a request and return the ID of its trace, which this test chooses."""
    trace_id = secrets.token_hex(16)
    asked = gateway.ProcessInferenceRequest(InferenceRequest(prompt="one two three", model=streams.MODEL))
    context.start(f"00-{trace_id}-{secrets.token_hex(8)}-01")
    async with api_client.mesh.rpc.stream(gateway.process_inference_request, asked, credential=person.key.secret) as answer:
        assert [chunk.text async for chunk in answer]
    return trace_id


async def _has_log(collector: Receiver, trace_id: str) -> bool:
    return any(service == "gateway" and record.get("traceId") == trace_id for service, record in list(collector.lines))


async def _failed_over(collector: Receiver) -> list[Received]:
    """Return the spans of a complete trace of a failover; empty while there is none."""
    by_trace: dict[str, list[Received]] = {}
    for one in list(collector.spans):
        by_trace.setdefault(one.span["traceId"], []).append(one)
    for found in by_trace.values():
        if Counter((one.service, one.name) for one in found if one.name not in ROOTS) == EXPECTED:
            return found
    return []


def _start(one: Received) -> int:
    return int(one.span["startTimeUnixNano"])
