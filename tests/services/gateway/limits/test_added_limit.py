"""One line more in ``LIMITS`` is a limit everywhere, as CONTRIBUTING.md says. Types are made at import, so a process tries it."""

import json
import subprocess
import sys

from tests.stacks import REPOSITORY

#: Puts a copy of the module with one line more in its place.
ADD = """
import sys, types
from pathlib import Path

import shared

text, head = Path("shared/limits.py").read_text(encoding="utf-8"), "\\nLIMITS = (\\n"
added = 'LimitKind("requests_per_day", "window", "request", 86_400, header="requests", defaults={Tier.FREE: 500}),'
assert text.count(head) == 1
limits = sys.modules["shared.limits"] = shared.limits = types.ModuleType("shared.limits")
exec(text.replace(head, head + "    " + added + "\\n"), limits.__dict__)
"""
USE = """
import asyncio, json
from uuid import UUID

import click
import msgspec

from cli.account import keys
from services.auth import store
from services.gateway.http_api import rest_accounts
from services.gateway.facts import tiers
from services.gateway.limits.limit_rules import LimitReached
from services.gateway.settings import GatewaySettings
from services.web.http import forms
from services.web.pages import key_view
from shared import config
from shared.config_documents import PlanDocument
from shared.types import KeyId, Tier
from tests.services.gateway.fake_counters import FakeCounters
from tests.services.gateway.limits.test_quotas import ADA, ApiClient
from tests.services.gateway.test_settings import GIVEN
from tools import limits as guide

body = msgspec.json.decode(b'{"requests_per_day": 2}', type=rest_accounts.ApiKeyBody)
stored = store._limits({"budget_every": None, "limits": store._written(rest_accounts.to_key_request(body).limits)})
found = {
    "wire": msgspec.to_builtins(stored)["requestsPerDay"],
    "form": key_view.read_limits(forms.convert({"name": "a", "requests_per_day": "2"}, key_view.NewKeyForm)).requests_per_day,
    "option": [option.help for option in keys.create.params if option.name == "requests_per_day"],
    "words": limits.in_words(stored),
    "default": tiers.DEFAULTS[Tier.FREE].requests_per_day,
    "setting": config.load(GatewaySettings, GIVEN | {"TIER_FREE": "requests_per_day=7"}).plans()[Tier.FREE].requests_per_day,
    "plan": PlanDocument(requests_per_day="unlimited").requests_per_day,
    "guide": [row for row in guide._rows() if "Requests per day" in row],
}

async def count():
    client = ApiClient(FakeCounters(), tiers.NO_LIMITS)
    caller = msgspec.structs.replace(ADA, key_id=KeyId(UUID(int=2)), key_limits=stored)
    usage = [await client.spend(caller), await client.spend(caller)]
    (state,) = await client.quotas.read(caller)
    found["header"] = usage[-1].tightest.requests == state
    found["quota"] = [state.kind, state.used, state.limit]
    try:
        await client.spend(caller)
    except LimitReached as error:
        found["error"] = error.message

asyncio.run(count())
print(json.dumps(found))
"""


def test_one_line_is_a_limit_everywhere() -> None:
    done = subprocess.run([sys.executable, "-c", ADD + USE], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "wire": 2,
        "form": 2,
        "option": ["Maximum requests per day."],
        "words": ["2/day"],
        "default": 500,
        "setting": 7,
        "plan": "unlimited",
        "guide": [["Requests per day", "500", "no limit", "no limit"]],
        "header": True,
        "quota": ["requests_per_day", 2, 2],
        "error": "this key's limit of 2 requests per day is used up",
    }
