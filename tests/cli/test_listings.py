"""models, nodes, usage and quota: the shapes that scripts rely on, and what people read."""

import json
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from shared.api import auth, gateway
from shared.api.gateway import NodeRow, ServedModel, UserQuota
from shared.api.usage import UsageDay, UserUsage
from shared.types import KeyId, ModelName, NodeId, Role, Tier, UserId
from tests.cli.fake_mesh import Shell

USER = UserId(UUID(int=1))
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
    assert "not used: loads its model" in text
    assert "1/4 +2" in text


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        pytest.param({"path": "punched", "round_trip_ms": 12.34, "usable": True, "why_not": ""}, "punched  12 ms  used", id="used"),
        pytest.param({"path": "direct", "round_trip_ms": 1.24}, "direct  1.2 ms  not used: loads its model", id="near"),
        pytest.param(
            {"path": "", "alive": False, "refused": True, "why_not": "the certificate expired 2 h ago"},
            "–     –    not let in: the certificate expired 2 h ago",
            id="refused",
        ),
        pytest.param({"path": "relayed", "alive": False, "why_not": "silent for 6 s"}, "relayed  –    gone: silent for 6 s", id="gone"),
    ],
)
def test_a_node_is_shown_with_its_path_and_why_it_is_not_used(shell: Shell, row: dict[str, Any], shown: str) -> None:
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((msgspec.structs.replace(WORKER, **row),)))
    assert shown in shell("nodes").stdout


def test_models(shell: Shell) -> None:
    model = ServedModel(name=ModelName("smollm2"), workers=2, context_tokens=2048, aliases=("llama3",))
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((model,)))
    assert json.loads(shell("models", "--json").stdout) == [
        {"name": "smollm2", "workers": 2, "context_tokens": 2048, "aliases": ["llama3"], "only_embeds": False},
    ]
    assert shell("models").stdout == "MODEL    WORKERS  CONTEXT      GIVES    ALIASES\nsmollm2  2        2048 tokens  answers  llama3\n"
    shell.mesh.answer(gateway.list_models, gateway.ServedModels((msgspec.structs.replace(model, only_embeds=True),)))
    assert "  embeddings  " in shell("models").stdout


def test_no_models(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, gateway.ServedModels(()))
    assert shell("models", "--json").stdout == "[]\n"
    result = shell("models")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "aicli worker" in result.stderr


def test_usage(shell: Shell) -> None:
    days = tuple(
        UsageDay(date=date(2026, 1, 2), api_key_id=key, request_count=4, tokens_used=50)
        for key in (KeyId(UUID(int=3)), KeyId(UUID(int=4 << 96)), None)
    )
    key = auth.ApiKey(
        id=KeyId(UUID(int=3)), user_id=USER, name="laptop", preview="…", is_active=False, created_at=datetime(2026, 1, 2, tzinfo=UTC)
    )
    shell.mesh.answer(auth.get_user_usage, UserUsage(user_id=USER, request_count=4, tokens_used=50, days=days))
    shell.mesh.answer(auth.list_api_keys, auth.ApiKeys((key,)))
    assert json.loads(shell("usage", "--json").stdout)[0] == {
        "date": "2026-01-02",
        "api_key_id": str(UUID(int=3)),
        "api_key_name": "laptop",
        "request_count": 4,
        "tokens_used": 50,
    }
    result = shell("usage")
    assert [line.split("50")[1].strip() for line in result.stdout.splitlines()[1:]] == ["laptop", "00000004…", "(logged in, without a key)"]
    assert result.stderr == "4 requests, 50 tokens in all\n"


def test_quota(shell: Shell) -> None:
    left = UserQuota(
        user_id=USER, tier=Tier.FREE, limit_per_hour=100, used_this_hour=3, remaining=97, resets_at=datetime(2026, 1, 2, tzinfo=UTC)
    )
    shell.mesh.answer(gateway.get_user_quota, left)
    assert json.loads(shell("quota", "--json").stdout)["remaining"] == 97
    assert shell("quota").stdout.startswith("97 of 100 requests left in this hour (tier free)\n")


def test_dashboard_prints_a_link(shell: Shell) -> None:
    shell.mesh.answer(auth.create_login_link, auth.LoginLink(token="a/b", expires_in=60))
    assert shell("dashboard", "--print").stdout == "http://127.0.0.1:3000/login-link?token=a%2Fb\n"
    assert json.loads(shell("dashboard", "--json").stdout)["expires_in"] == 60


def test_completion_knows_the_program(shell: Shell) -> None:
    for name in ("bash", "zsh", "fish"):
        assert "_AICLI_COMPLETE" in shell("completion", name).stdout
