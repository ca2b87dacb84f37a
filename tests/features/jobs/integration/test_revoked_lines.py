"""The batches of a revoked key end at all of three gateways."""

import time
from pathlib import Path

import pytest

from shared.types import Tier
from tests import people, stacks
from tests.features.jobs.chaos import job_rows, scenarios
from tests.integration.test_revoked_everywhere import END_SECONDS, LONG, UNLIMITED, client, three_gateways
from tests.stacks import until

pytestmark = pytest.mark.nightly("stacks")

LINES = 4


async def test_lines_of_a_revoked_key_end_everywhere_in_five_seconds(tmp_path: Path) -> None:
    async with (
        stacks.stack(INFERENCE_BACKEND="echo", ECHO_TOKEN_MS="100", TIER_ENTERPRISE=UNLIMITED) as stack,
        people.api_client(stack) as api_client,
        three_gateways(stack, tmp_path) as gateways,
    ):
        ann = await api_client.register("ann", Tier.ENTERPRISE)
        spare = await api_client.make_key(ann, "spare")

        async def are_running(lines: int) -> bool:
            (found,) = await job_rows.read_batches(stack, [ann.id])
            return len(found.running) == lines

        async with client(gateways[0], spare.secret) as http:
            batch = await scenarios.order_batch(http, {f"n{line}": LONG for line in range(LINES)})
        await until(lambda: are_running(LINES), seconds=60, what="the lines run")
        assert (await stack.aicli("keys", "revoke", "spare", AICLI_API_KEY=ann.key.secret)).status == 0
        revoked_at = time.monotonic()
        await until(lambda: are_running(0), seconds=revoked_at + END_SECONDS - time.monotonic(), what="no line runs")
        async with client(gateways[1], ann.key.secret) as http:
            assert (await http.get(f"/v1/batches/{batch}")).json()["status"] in {"cancelling", "cancelled"}
