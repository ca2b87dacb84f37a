"""The calls of docs/howto/billing.md, as its section Billing over REST shows them, on a whole mesh."""

import asyncio
import json
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import people, stacks

PAGE = Path(__file__).parents[2] / "docs/howto/billing.md"


def shown() -> dict[str, str]:
    """Return the command of each path."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## Billing over REST\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return {line.split()[2].strip('"').removeprefix("$MESH/api/"): line for line in block.splitlines()}


async def run(command: str, **variables: str) -> dict[str, Any]:
    environment = {"PATH": os.environ["PATH"], **variables}
    program = await asyncio.create_subprocess_shell(command, env=environment, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, _ = await program.communicate()
    assert program.returncode == 0, command
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.mark.nightly("stacks")
async def test_the_calls_of_the_page_sell_a_plan_and_credits() -> None:
    commands = shown()
    async with stacks.stack(AIMESH_ECHO="1", MONEY="on") as stack, people.api_client(stack) as api:
        ann = await api.register("ann")
        given = {"MESH": stack.url("gateway"), "KEY": ann.key.secret, "ADMIN_KEY": str(api.admin_key), "OWNER": str(ann.id)}

        async def call(path: str) -> dict[str, Any]:
            return await run(commands.pop(path), **given)

        assert [plan["name"] for plan in (await call("plans"))["plans"]] == ["free", "pro"]
        order = await call("billing/plan")
        given["INVOICE"] = order["invoice"]
        assert [one["document"]["number"] for one in (await call("billing/invoices?open=true"))["invoices"]] == [order["invoice"]]
        assert (await call("billing/invoices/$INVOICE"))["document"]["totalMinor"] == 2900
        assert (await call("billing/payments"))["state"] == "paid"
        assert (await call("billing"))["plan"]["name"] == "pro"
        assert not (top_up := await call("billing/top-ups"))["done"]
        assert top_up["invoice"] != order["invoice"]
        assert Decimal((await call("billing/credits"))["balanceMicro"]) == 2_500_000
    assert not commands, "the page shows more"
