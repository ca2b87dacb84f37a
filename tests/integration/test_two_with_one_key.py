"""A second process with the key of a running one exits with code 2 and an error message; the first one keeps working."""

import time
from pathlib import Path

import pytest

from shared import errors
from shared.protocol import duplicate_keys
from tests import replicas
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

pytestmark = pytest.mark.nightly("stacks")


def findings(stack: RunningStack) -> list[str]:
    """Return the conflicts that the gateway found; its metric also counts links that are replaced again and again, as under load."""
    return [line for line in stack.log("gateway").splitlines() if "two processes use one node key" in line]


async def test_a_second_worker_with_the_same_key_stops_and_the_first_one_works_on(
    stack: RunningStack, api_client: ApiClient, ann: Person, tmp_path: Path
) -> None:
    # The worker can't hear its twin over NATS: the gateway, auth and metrics hear both and report it to the worker.
    first = (await stack.pids())["inference-echo"]
    found, counted = findings(stack), await stack.metric("gateway", "ai_platform_contested_keys_total")
    async with replicas.replica(stack, "inference", folder=tmp_path, settings={"NODE_KEY_FILE": str(stack.place.key("echo"))}) as second:
        assert await second.ended() == 2
        assert "another process already runs as this node" in second.log
        assert "NODE_KEY_FILE" in second.log

    async def answers() -> bool:
        return (await asking.rpc(api_client.mesh, ann.key.secret, "hi")).text == "hi"

    await until(answers, seconds=20, what="the first worker answers", ignoring=(errors.PeerError,))
    assert (await stack.pids())["inference-echo"] == first

    async def is_found() -> bool:
        return len(findings(stack)) > len(found)

    # Auth may have told the worker before the gateway heard both.
    await until(is_found, what="the gateway finds it")
    assert len(findings(stack)) == len(found) + 1
    assert await stack.metric("gateway", "ai_platform_contested_keys_total") > counted


async def test_a_second_gateway_with_the_same_key_stops_and_the_first_one_works_on(stack: RunningStack, tmp_path: Path) -> None:
    first = (await stack.pids())["gateway"]
    async with replicas.replica(stack, "gateway", folder=tmp_path, settings={"NODE_KEY_FILE": str(stack.place.key("gateway"))}) as second:
        assert await second.ended() == 2
        assert "another process already runs as this node" in second.log
    assert (await stack.pids())["gateway"] == first


async def test_a_second_process_with_the_same_state_file_does_not_start(stack: RunningStack, tmp_path: Path) -> None:
    key_file = stack.place.key("metrics")
    (tmp_path / "metrics-replica.mesh").symlink_to(key_file.with_suffix(".mesh"))
    (tmp_path / "metrics-replica.mesh.lock").symlink_to(key_file.with_suffix(".mesh.lock"))
    async with replicas.replica(stack, "metrics", folder=tmp_path, settings={"NODE_KEY_FILE": str(key_file)}) as second:
        assert await second.ended() == 2
        assert "another process uses" in second.log


async def test_a_worker_that_is_killed_and_started_at_once_is_no_contest(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    found = findings(stack)
    await stack.restarted("inference-echo", await stack.kill("inference-echo"), seconds=60)

    async def answers() -> bool:
        return (await asking.rpc(api_client.mesh, ann.key.secret, "hi")).text == "hi"

    await until(answers, seconds=30, what="the new worker answers", ignoring=(errors.PeerError,))
    restarted_at = time.time()

    async def has_run_long_enough() -> bool:
        """Return whether a conflict would be known by now; the supervisor would have left the worker down."""
        row = (await stack.programs())["inference-echo"]
        assert row.ready
        return time.time() - restarted_at > 2 * duplicate_keys.OVERLAP_SECONDS + 2

    await until(has_run_long_enough, seconds=30)
    assert findings(stack) == found
