"""Batches of a storm, whose lines are odd items, too. See ``tests.chaos.oddities``."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx

from tests.chaos.world import AWAY
from tests.features.jobs.chaos import scenarios
from tests.stacks import until

#: Of a batch, and how often one is ordered.
LINES, BATCH_SECONDS = 30, 15.0
END_SECONDS = 240.0


class OddBatches:
    def __init__(self) -> None:
        #: Their prompts, by custom id.
        self.batches: dict[str, dict[str, str]] = {}

    async def run(self, http: httpx.AsyncClient, headers: Mapping[str, str], ends_at: float) -> None:
        """Order batches until then."""
        while time.monotonic() < ends_at - BATCH_SECONDS:
            number = len(self.batches)
            prompts = {f"b{number}n{line}": f"b{number}n{line} one two three" for line in range(LINES)}
            with suppress(httpx.HTTPError, LookupError, ValueError):
                self.batches[await scenarios.order_batch(http, prompts, headers)] = prompts
            await asyncio.sleep(BATCH_SECONDS)

    async def judge(self, http: httpx.AsyncClient, headers: Mapping[str, str]) -> list[str]:
        """Wait for the batches, and return what was wrong."""
        wrong = [said for batch, prompts in self.batches.items() for said in await _judge(http, headers, batch, prompts)]
        return wrong if self.batches else ["no batch was ordered"]


async def _judge(http: httpx.AsyncClient, headers: Mapping[str, str], batch: str, prompts: dict[str, str]) -> list[str]:
    async def ended() -> dict[str, Any] | None:
        found = (await http.get(f"/v1/batches/{batch}", headers=headers)).raise_for_status().json()
        return found if found["status"] not in {"validating", "in_progress", "finalizing"} else None

    found = await until(ended, seconds=END_SECONDS, what=f"batch {batch} ends", ignoring=AWAY)
    lines = await scenarios.read_results(http, found, headers)
    wrong = [] if found["status"] == "completed" else [f"batch {batch} is {found['status']}: {found['errors']}"]
    if sorted(line["custom_id"] for line in lines) != sorted(prompts):
        wrong.append(f"batch {batch} has {len(lines)} results for {len(prompts)} lines")
    for line in lines:
        if line["error"] is None and line["response"]["status_code"] == 200:
            said = line["response"]["body"]["choices"][0]["message"]["content"]
            if said != prompts[line["custom_id"]]:
                wrong.append(f"batch {batch}: {line['custom_id']} has another text: {said[:60]!r}")
    return wrong


ODD = OddBatches
