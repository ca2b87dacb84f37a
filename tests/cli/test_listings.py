"""models, nodes, usage and quota: JSON shapes for scripts, and text for people."""

import json
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from shared.api import auth, gateway, usage_report
from shared.api.auth import Every
from shared.api.gateway import KeyBudget, LimitState, NodeRow, ServedModel, UserQuota
from shared.api.ledger import Account, Allowance
from shared.api.usage_report import DailyUsage, UserUsage
from shared.types import KeyId, MicroCredits, ModelName, NodeId, Role, Tier, UserId
from tests.cli.fake_mesh import Shell

USER = UserId(UUID(int=1))
FEBRUARY = datetime(2026, 2, 1, tzinfo=UTC)
LEFT = UserQuota(
    user_id=USER,
    tier=Tier.FREE,
    limit_per_hour=100,
    used_this_hour=3,
    remaining=97,
    resets_at=datetime(2026, 1, 2, tzinfo=UTC),
    limits=(
        LimitState("user", "requests_per_hour", 100, 97, 3_599, source="DEFAULT_RATE_LIMIT"),
        LimitState("key", "tokens_per_minute", 500, 120, 45.6, source="key"),
        LimitState("model", "concurrency", 32, 32, 0, "smollm2", "MODEL_LIMITS"),
        LimitState("user", "concurrency", 10, 10, 0, source="default"),
        LimitState("model", "requests_per_minute", 3, 3, 0),
    ),
    account=Account(MicroCredits(99_977_500), MicroCredits(0), MicroCredits(0), Allowance(100_000, 150, 0, FEBRUARY)),
)
WORKER = NodeRow(
    id=NodeId("UABCDEFGHIJKLMNOP"),
    role=Role.WORKER,
    service="inference",
    path="nats",
    alive=True,
    refused=False,
    usable=False,
    why_not="loads its model",
    models=(ModelName("smollm2"),),
    since=datetime(2026, 1, 2, tzinfo=UTC),
    version="0.1.0",
    running=1,
    queued=2,
    slots=4,
)


def test_nodes(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((WORKER,)))
    (row,) = json.loads(shell("nodes", "--json").stdout)
    assert row["id"] == "UABCDEFGHIJKLMNOP"
    assert {name: row[name] for name in ("role", "service", "path", "usable", "why_not", "models", "since")} == {
        "role": "worker",
        "service": "inference",
        "path": "nats",
        "usable": False,
        "why_not": "loads its model",
        "models": ["smollm2"],
        "since": "2026-01-02T00:00:00Z",
    }
    text = shell("nodes").stdout
    assert "Degraded  loads its model" in text
    assert "1 of 4 busy, 2 queued" in text


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        pytest.param({"path": "punched", "round_trip_ms": 12.34, "usable": True, "why_not": ""}, "Direct (NAT) 12 ms OK –", id="used"),
        pytest.param({"usable": True, "why_not": "", "trouble": "NATS: not connected"}, "OK NATS: not connected", id="used otherwise"),
        pytest.param({"path": "direct", "round_trip_ms": 1.24}, "Direct 1.2 ms Degraded loads its model", id="near"),
        pytest.param(
            {"path": "", "alive": False, "refused": True, "why_not": "the certificate expired 2 h ago"},
            "– – Rejected the certificate expired 2 h ago",
            id="refused",
        ),
        pytest.param({"path": "relayed", "alive": False, "why_not": "silent for 6 s"}, "Relay – Down silent for 6 s", id="gone"),
    ],
)
def test_node_is_shown_with_its_path_and_why_it_is_unused(shell: Shell, row: dict[str, Any], shown: str) -> None:
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((msgspec.structs.replace(WORKER, **row),)))
    assert shown in " ".join(shell("nodes").stdout.split())


def test_models(shell: Shell) -> None:
    model = ServedModel(name=ModelName("smollm2"), workers=2, context_tokens=2048, aliases=("llama3",))
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((model,)))
    assert json.loads(shell("models", "--json").stdout) == [
        {
            "name": "smollm2",
            "workers": 2,
            "context_tokens": 2048,
            "aliases": ["llama3"],
            "only_embeds": False,
            "providers": [],
            "regions": [],
            "abilities": [],
            "parent": None,
            "upstream_models": [],
            "suits_agents": False,
            "agents_hint": "",
            "right_calls": None,
        },
    ]
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((msgspec.structs.replace(model, abilities=("images", "tools")),)))
    assert shell("models").stdout.splitlines()[1].endswith("llama3   images, tools")
    long = msgspec.structs.replace(model, name=ModelName("long"), suits_agents=True, agents_hint="tools 47 of 50")
    short = msgspec.structs.replace(model, name=ModelName("short"), agents_hint="tools not checked")
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((long, short, model)))
    shown = [line.rpartition("llama3   ")[2] for line in shell("models").stdout.splitlines()]
    assert shown[1:] == ["yes, tools 47 of 50", "tools not checked", "–"]
    adapter = msgspec.structs.replace(model, name=ModelName("smollm2:sql"), parent=ModelName("smollm2"))
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((model, adapter)))
    heading, base, other = shell("models").stdout.splitlines()
    assert [line.split()[-1] for line in (heading, base, other)] == ["OF", "–", "smollm2"]
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((model,)))
    assert shell("models").stdout == "MODEL    WORKERS  CONTEXT      SERVES   ALIASES\nsmollm2  2        2048 tokens  answers  llama3\n"
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((msgspec.structs.replace(model, only_embeds=True),)))
    assert "  embeddings  " in shell("models").stdout
    shell.mesh.answer(
        gateway.list_models, gateway.ServedModels((model, msgspec.structs.replace(model, context_tokens=0, providers=("acme",))))
    )
    first, own, theirs = shell("models").stdout.splitlines()
    assert (first.split()[-1], own.split()[-1], theirs.split()) == ("PROVIDERS", "–", ["smollm2", "2", "–", "answers", "llama3", "acme"])
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((model, msgspec.structs.replace(model, upstream_models=("gpt-4.1-mini",)))))
    first, own, theirs = shell("models").stdout.splitlines()
    assert (first.split()[-2:], own.split()[-1], theirs.split()[-1]) == (["UPSTREAM", "MODEL"], "–", "gpt-4.1-mini")
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((model, msgspec.structs.replace(model, regions=("eu", "us")))))
    first, own, theirs = shell("models").stdout.splitlines()
    assert (first.split()[-1], own.split()[-1], theirs.split()[-2:]) == ("REGIONS", "–", ["eu,", "us"])


def test_no_models(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, gateway.ServedModels(()))
    assert shell("models", "--json").stdout == "[]\n"
    result = shell("models")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "aicli worker" in result.stderr
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((), "UABC… smollm2: the engine is being built"))
    assert "No models available: UABC… smollm2: the engine is being built" in shell("models").stderr


@pytest.fixture
def used(shell: Shell) -> Shell:
    """A mesh that has counted usage."""
    days = tuple(
        DailyUsage(date(2026, 1, 2), key, request_count=4, tokens_used=50, cost_micro=MicroCredits(7_500), api_key_name=name)
        for key, name in ((KeyId(UUID(int=3)), "laptop"), (KeyId(UUID(int=4 << 96)), None), (None, None))
    )
    shell.mesh.answer(usage_report.get_user_usage, UserUsage(USER, 12, 150, days, MicroCredits(22_500)))
    shell.mesh.answer(gateway.get_user_quota, LEFT)
    return shell


def test_usage_json_has_everything(used: Shell) -> None:
    shown = json.loads(used("usage", "--json").stdout)
    assert shown["days"][0] == {
        "date": "2026-01-02",
        "api_key_id": str(UUID(int=3)),
        "api_key_name": "laptop",
        "request_count": 4,
        "tokens_used": 50,
        "cost_micro": 7_500,
    }
    assert (shown["tier"], shown["request_count"], shown["tokens_used"], shown["cost_micro"]) == ("free", 12, 150, 22_500)
    assert shown["limits"][1] == {
        "scope": "key",
        "kind": "tokens_per_minute",
        "limit": 500,
        "remaining": 120,
        "resets_in_seconds": 45.6,
        "name": "",
        "source": "key",
    }
    assert shown["account"]["balance_micro"] == 99_977_500
    assert shown["account"]["allowance"] == {"included": 100_000, "used": 150, "held": 0, "renews_at": "2026-02-01T00:00:00Z"}


def test_usage_text(used: Shell) -> None:
    result = used("usage")
    days, left, limits = (part.splitlines() for part in result.stdout.split("\n\n"))
    assert [line.split("0.0075")[1].strip() for line in days[1:4]] == ["laptop", "00000004…", "(signed in without a key)"]
    assert days[4] == "12 requests, 150 tokens, 0.0225 credits in total"
    assert left == [
        "tier          free",
        "tokens left   99,850; 150 of 100,000 used; renews 1 Feb 2026",
        "credits left  99.9775",
        "topped up     99.9775",
    ]
    assert limits == [
        "LIMIT                OF             USED        SET BY              RESETS IN",
        "requests per hour    account        3 of 100    DEFAULT_RATE_LIMIT  59 min",
        "tokens per minute    this key       380 of 500  the key itself      46 s",
        "concurrent requests  model smollm2  0 of 32     MODEL_LIMITS        –",
        "concurrent requests  account        0 of 10     tier default        –",
        "requests per minute  model          0 of 3      –                   –",
    ]


def test_usage_shows_the_remaining_budget_of_the_key(used: Shell) -> None:
    budget = KeyBudget(MicroCredits(5_000_000), MicroCredits(1_250_000), MicroCredits(250_000))
    used.mesh.answer(gateway.get_user_quota, msgspec.structs.replace(LEFT, key_budget=budget))
    line = "this key      3.5 left of its 5, 0.25 of it held by running requests"
    for command in ("usage", "quota"):
        assert line in used(command).stdout.splitlines()
        assert json.loads(used(command, "--json").stdout)["key_budget"] == {
            "budget_micro": 5_000_000,
            "spent_micro": 1_250_000,
            "reserved_micro": 250_000,
            "every": None,
        }
    used.mesh.answer(gateway.get_user_quota, msgspec.structs.replace(LEFT, key_budget=msgspec.structs.replace(budget, every=Every.DAY)))
    assert line.replace("its 5,", "its 5 every day,") in used("usage").stdout.splitlines()


def test_overdrawn_budget_shows_zero(used: Shell) -> None:
    budget = KeyBudget(MicroCredits(5_000_000), MicroCredits(5_000_001), MicroCredits(0))
    used.mesh.answer(gateway.get_user_quota, msgspec.structs.replace(LEFT, key_budget=budget))
    assert "this key      0 left of its 5" in used("usage").stdout.splitlines()


def test_singular_forms(used: Shell) -> None:
    days = (DailyUsage(date(2026, 1, 1), None, 1, 1, MicroCredits(1_000_000)),)
    used.mesh.answer(usage_report.get_user_usage, UserUsage(USER, 1, 1, days, MicroCredits(1_000_000)))
    assert "1 request, 1 token, 1 credit in total" in used("usage").stdout


def test_usage_of_an_older_gateway(used: Shell) -> None:
    used.mesh.answer(gateway.get_user_quota, msgspec.structs.replace(LEFT, limits=(), account=None))
    used.mesh.answer(usage_report.get_user_usage, UserUsage(USER, 0, 0))
    result = used("usage")
    assert (result.stdout, result.stderr) == ("tier          free\n", "No usage yet.\n")


def test_quota(used: Shell) -> None:
    assert json.loads(used("quota", "--json").stdout)["remaining"] == 97
    lines = used("quota").stdout.splitlines()
    assert lines[0] == "97 of 100 requests left this hour (tier free)"
    assert "credits left  99.9775" in lines
    assert "concurrent requests  model smollm2  0 of 32     MODEL_LIMITS        –" in lines


def test_quota_without_a_limit(shell: Shell) -> None:
    left = msgspec.structs.replace(LEFT, tier=Tier.ENTERPRISE, limit_per_hour=gateway.NO_LIMIT, limits=())
    shell.mesh.answer(gateway.get_user_quota, left)
    assert shell("quota").stdout.startswith("no hourly request limit (tier enterprise)\n")


def test_dashboard_prints_a_link(shell: Shell) -> None:
    shell.mesh.answer(auth.create_login_link, auth.LoginLink(token="a/b", expires_in=60))
    assert shell("dashboard", "--print").stdout == "http://127.0.0.1:3000/login-link?token=a%2Fb\n"
    assert json.loads(shell("dashboard", "--json").stdout)["expires_in"] == 60


def test_completion_knows_the_program(shell: Shell) -> None:
    for name in ("bash", "zsh", "fish"):
        assert "_AICLI_COMPLETE" in shell("completion", name).stdout
