"""Measure when a server of a user learns that a batch has ended.  python -m tests.features.webhooks.bench"""

import asyncio
import time

from bench import batches, report, tenants
from bench.report import Options, Rows
from tests.features.webhooks.gateway.receiver import receiving

PROMPT = "Write about rivers and the towns beside them."
MAX_SECONDS = 2.0


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    settings = {"ECHO_TOKEN_MS": 10.0, "WEBHOOK_ALLOWED_HOSTS": "127.0.0.0/8"}
    delivered = []
    async with tenants.opened(1, **settings) as stack, receiving() as receiver, batches.opened(stack.running, stack.keys[0]) as jobs:
        hook = {"url": f"http://127.0.0.1:{receiver.port}/hook", "name": "bench", "event_types": ["batch.cancelled"]}
        (await jobs.http.post("/v1/webhook_endpoints", json=hook)).raise_for_status()
        for _ in range(options.rounds):
            receiver.arrived.clear()
            batch = await jobs.order(batches.chat("echo", f"{number} {PROMPT}", 20) for number in range(3000))
            await jobs.cancel(batch)
            await asyncio.wait_for(receiver.arrived.wait(), 30)
            arrived_at = time.time()
            async with stack.running.database("gateway") as database:
                ended = await database.fetchval("SELECT extract(epoch FROM ended_at)::float8 FROM jobs ORDER BY created_at DESC LIMIT 1")
            delivered.append(arrived_at - ended)
    rows.alone("the first webhook comes after the end", max(delivered), "s", at_most=MAX_SECONDS)


if __name__ == "__main__":
    report.run(__doc__, {"webhooks": _measure}, limits=(300.0, 120.0), rounds=(5, 1))
