"""The Valkey with the limits is killed under load, behind Sentinels and in a cluster: requests follow LIMITER_WITHOUT_VALKEY, and no
request gets a 500."""

import time
from collections.abc import Iterator

import pytest

from services.gateway.facts import tiers
from tests import people, stacks
from tests.chaos import judging, load
from tests.chaos.failover.test_failover import SETTINGS
from tests.chaos.oracle import Door, Fault
from tests.stacks import RunningStack, until
from tests.valkey_groups import Cluster, ValkeyNode, Watched, cluster, watched

#: What operators should expect with Sentinels; the servers here need a second or two.
USED_WITHIN_SECONDS = 10.0
#: A key of the limits; all limits are on one shard.
LIMITS = "gateway:{limits}:x"


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Watched]:
    with watched() as started:
        yield started


@pytest.fixture(scope="module")
def shards() -> Iterator[Cluster]:
    with cluster() as started:
        yield started


async def primary_of(group: Watched | Cluster) -> ValkeyNode:
    return await (group.primary() if isinstance(group, Watched) else group.owner(LIMITS))


async def is_replaced(group: Watched | Cluster, killed: ValkeyNode) -> bool:
    try:
        found = await primary_of(group)
    except AssertionError:
        return False
    return found is not killed and (await found.ask("ROLE"))[0] == b"master"


async def says(stack: RunningStack, event: str) -> bool:
    return f'"event": "{event}"' in stack.log("gateway")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "without", "codes"),
    [
        pytest.param("sentinels", "degrade", frozenset[str](), id="sentinels, counting alone"),
        pytest.param("shards", "closed", frozenset({"unavailable"}), id="cluster, refusing"),
    ],
)
async def test_a_killed_primary_is_replaced_and_requests_follow_the_setting(
    request: pytest.FixtureRequest, kind: str, without: str, codes: frozenset[str]
) -> None:
    group: Watched | Cluster = request.getfixturevalue(kind)
    for each in (*group.servers, *(group.sentinels if isinstance(group, Watched) else ())):
        each.ensure_running()
    if isinstance(group, Cluster) and b"cluster_known_nodes:1\r" in await group.servers[0].ask("CLUSTER", "INFO"):
        await group.form()
    await group.settle()
    # With one limit, so that each request uses Valkey.
    tier = ",".join(f"{name}={100_000 if name == 'requests_per_hour' else 'unlimited'}" for name in tiers.NUMBERS)
    settings = SETTINGS | {"TIER_FREE": tier, "REDIS_URL": group.url, "LIMITER_WITHOUT_VALKEY": without}
    async with stacks.stack(**settings) as stack, people.api_client(stack) as api:
        ann = await api.register("ann")
        async with load.running(stack, ann) as history:
            await history.until_each_door_succeeds(5)
            killed = await primary_of(group)
            fault_at = time.monotonic()
            killed.kill()
            await until(lambda: says(stack, "valkey is not counting limits"), what="the gateway limits without Valkey")
            await until(lambda: is_replaced(group, killed), seconds=USED_WITHIN_SECONDS, what="a replica is the primary")
            over_at = time.monotonic()
            await until(
                lambda: says(stack, "valkey is counting limits again"), seconds=USED_WITHIN_SECONDS, what="the limits are in Valkey again"
            )
            await history.until_each_door_succeeds(5, since=over_at, seconds=USED_WITHIN_SECONDS)
        used_at = max(history.last_failure(), over_at)
        print(f"used {used_at - over_at:.2f} s after the failover; {history.outcomes()}")
        assert {attempt.status for attempt in history.attempts} & set(range(500, 503)) == set()
        fault = Fault(began=fault_at, over=over_at + USED_WITHIN_SECONDS, doors=frozenset(Door), codes=codes)
        await judging.judge(stack, ann, history, fault)
        await judging.check_the_books(stack)
