"""admin tickets and admin nodes: their calls, their output, and protection against mistakes."""

import json
from datetime import UTC, datetime
from typing import Any

import click.testing
import pytest

from shared import errors
from shared.api import gateway, membership
from shared.api.membership import Member, MemberState, NewTicket, TicketRow, TicketState
from shared.types import NodeId, Role
from tests.cli.fake_mesh import Shell

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TICKET = "aip_join_AbCd"
NODE = NodeId("UABCDEFGH" + "A" * 47)


def row(**changed: Any) -> TicketRow:
    fields: dict[str, Any] = {
        "id": "0123456789abcdef", "role": Role.WORKER, "state": TicketState.GOOD, "uses": 1, "used": 0, "labels": {"zone": "eu"},
        "needs_approval": False, "owner": "alice", "created_at": NOW, "expires_at": NOW,
    }  # fmt: skip
    return TicketRow(**{**fields, **changed})


def member(**changed: Any) -> Member:
    fields: dict[str, Any] = {
        "id": NODE, "role": Role.WORKER, "state": MemberState.ACTIVE, "name": "gpu-box", "owner": "alice", "labels": {"zone": "eu"},
        "joined_at": NOW, "renewed_at": NOW, "certified_until": NOW, "revoked_at": None, "reason": "",
    }  # fmt: skip
    return Member(**{**fields, **changed})


@pytest.fixture
def running_service(shell: Shell) -> Shell:
    """A mesh whose auth has one ticket and two nodes."""
    mesh = shell.mesh
    mesh.answer(membership.create_ticket, lambda request: NewTicket(TICKET, row(role=request.role, uses=request.uses)))
    mesh.answer(membership.list_tickets, membership.Tickets((row(), row(id="ffff", state=TicketState.USED_UP, used=1, labels={}))))
    mesh.answer(membership.revoke_ticket, row(state=TicketState.REVOKED, used=1, uses=5))
    waiting = member(id=NodeId("UZZZ" + "A" * 52), state=MemberState.PENDING, name="", owner="", certified_until=None)
    mesh.answer(membership.list_members, membership.Members((waiting, member(state=MemberState.REVOKED, reason="sold"))))
    mesh.answer(membership.approve_member, member())
    mesh.answer(membership.revoke_member, member(state=MemberState.REVOKED))
    return shell


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Click's runner replaces stdin with its own, which is no terminal."""
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda self: True)


# --- tickets -----------------------------------------------------------------------------------------------------------


def test_ticket_goes_to_stdout_and_instructions_to_stderr(running_service: Shell) -> None:
    result = running_service("admin", "tickets", "create", "--role", "worker")
    assert (result.exit_code, result.stdout) == (0, f"{TICKET}\n")
    assert "aicli worker --join TICKET" in result.stderr
    assert TICKET not in result.stderr
    assert running_service.mesh.calls[0].request == membership.CreateTicket(Role.WORKER)


def test_all_ticket_options(running_service: Shell) -> None:
    options = ["--role", "client", "--uses", "5", "--ttl", "7d", "--label", "zone=eu", "--label", "gpu=4090", "--approval"]
    options += ["--owner", "bob"]
    result = running_service("admin", "tickets", "create", *options)
    assert "aicli mesh connect TICKET" in result.stderr
    assert "5 machines" in result.stderr
    assert running_service.mesh.calls[0].request == membership.CreateTicket(
        Role.CLIENT, uses=5, ttl_seconds=7 * 86_400, labels={"zone": "eu", "gpu": "4090"}, needs_approval=True, owner="bob"
    )


def test_a_workers_ticket_has_a_model_and_prints_the_line_that_installs(running_service: Shell) -> None:
    line = f"curl -fsS https://ai.example.org/install.sh | sh -s -- {TICKET}"
    running_service.mesh.answer(membership.create_ticket, NewTicket(TICKET, row(accept_models=False), install=line))
    options = ["--role", "worker", "--model", "hf:org/model", "--no-accept-models", "--elsewhere"]
    result = running_service("admin", "tickets", "create", *options)
    assert result.stdout == f"{TICKET}\n"
    without_engine = line.replace("| sh", "| AIMESH_FRONT=1 sh")
    assert (
        f"On that machine, in a terminal: {line}\nIf it only shares Ollama or another server, also on macOS: {without_engine}\n"
        in result.stderr
    )
    assert "Or in a checkout of aimesh there: aicli worker --join TICKET\n" in result.stderr
    assert "Administrators may not put models on it" in result.stderr
    wanted = membership.CreateTicket(Role.WORKER, model="hf:org/model", accept_models=False, elsewhere=True)
    assert running_service.mesh.calls[0].request == wanted
    assert json.loads(running_service("admin", "tickets", "create", *options, "--json").stdout)["install"] == line


def test_without_a_line_that_works_it_says_what_is_missing(running_service: Shell) -> None:
    running_service.mesh.answer(membership.create_ticket, NewTicket(TICKET, row(), install_needs="PUBLIC_URL isn't set"))
    result = running_service("admin", "tickets", "create", "--role", "worker")
    assert "no line that installs aimesh there: PUBLIC_URL isn't set" in result.stderr
    assert json.loads(running_service("admin", "tickets", "create", "--role", "worker", "--json").stdout)["install"] is None


def test_a_ticket_for_replicas(running_service: Shell) -> None:
    words = (
        "--role",
        "gateway",
        "--active",
        "20",
        "--uses",
        "unlimited",
        "--network",
        "10.0.0.0/8",
        "--network",
        "fd00::/8",
        "--ttl",
        "90d",
    )
    result = running_service("admin", "tickets", "create", *words)
    assert running_service.mesh.calls[0].request == membership.CreateTicket(
        Role.GATEWAY, uses=None, ttl_seconds=90 * 86_400, active_most=20, networks=("10.0.0.0/8", "fd00::/8")
    )
    assert "any number of machines" in result.stderr
    assert "JOIN_TICKET_FILE" in result.stderr


def test_a_ticket_is_rotated_or_revoked_with_its_nodes(running_service: Shell) -> None:
    running_service.mesh.answer(membership.rotate_ticket, NewTicket(TICKET, row()))
    assert running_service("admin", "tickets", "rotate", "0123").stdout == f"{TICKET}\n"
    assert "and its machines" in running_service("admin", "tickets", "revoke", "0123", "--with-nodes").output
    assert running_service.mesh.calls[-1].request == membership.RevokeTicket("0123", with_nodes=True)
    assert running_service("admin", "tickets", "rotate", TICKET).exit_code == 2


def test_ticket_as_json(running_service: Shell) -> None:
    running_service.mesh.answer(membership.create_ticket, NewTicket(TICKET, row(), ("leads nowhere",)))
    made = json.loads(running_service("admin", "tickets", "create", "--role", "worker", "--json").stdout)
    assert (made["ticket"], made["warnings"], made["id"], made["labels"]) == (TICKET, ["leads nowhere"], "0123456789abcdef", {"zone": "eu"})


def test_warnings_and_pending_approval_are_printed(running_service: Shell) -> None:
    running_service.mesh.answer(membership.create_ticket, NewTicket(TICKET, row(needs_approval=True), ("leads nowhere",)))
    result = running_service("admin", "tickets", "create", "--role", "worker", "--approval")
    assert result.stdout == f"{TICKET}\n"
    assert "warning: leads nowhere" in result.stderr
    assert "aicli admin nodes approve" in result.stderr


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("30m", 1800), ("30min", 1800), ("1h", 3600), ("7d", 604_800)])
def test_durations(running_service: Shell, text: str, seconds: int) -> None:
    assert running_service("admin", "tickets", "create", "--role", "worker", "--ttl", text).exit_code == 0
    request = running_service.mesh.calls[0].request
    assert isinstance(request, membership.CreateTicket)
    assert request.ttl_seconds == seconds


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="no role"),
        pytest.param(["--role", "auth"], id="a role that nobody joins as"),
        pytest.param(["--role", "worker", "--ttl", "401d"], id="too long"),
        pytest.param(["--role", "worker", "--uses", "many"], id="no number of uses"),
        pytest.param(["--role", "worker", "--ttl", "59s"], id="too short"),
        pytest.param(["--role", "worker", "--ttl", "soon"], id="no time"),
        pytest.param(["--role", "worker", "--ttl", "3600"], id="no unit"),
        pytest.param(["--role", "worker", "--uses", "0"], id="no use"),
        pytest.param(["--role", "worker", "--label", "zone"], id="a label without a value"),
        pytest.param(["--role", "worker", "--label", "a b=c"], id="a label with a blank"),
    ],
)
def test_invalid_command_line_makes_no_call(running_service: Shell, options: list[str]) -> None:
    assert running_service("admin", "tickets", "create", *options).exit_code == 2
    assert running_service.mesh.calls == []


def test_tickets_list(running_service: Shell) -> None:
    rows = json.loads(running_service("admin", "tickets", "list", "--json").stdout)
    assert [(entry["id"], entry["state"]) for entry in rows] == [("0123456789abcdef", "good"), ("ffff", "used_up")]
    text = running_service("admin", "tickets", "list").stdout
    assert "Used up" in text
    assert "zone=eu" in text


def test_tickets_revoke(running_service: Shell) -> None:
    result = running_service("admin", "tickets", "revoke", "0123")
    assert running_service.mesh.calls[0].request == membership.RevokeTicket("0123")
    assert result.stdout == "Revoked ticket 0123456789abcdef. Machines that joined with it stay (1): aicli admin nodes list.\n"
    result = running_service("admin", "tickets", "revoke", TICKET)
    assert (result.exit_code, len(running_service.mesh.calls)) == (2, 1)
    assert TICKET not in result.output


# --- nodes -------------------------------------------------------------------------------------------------------------


def test_nodes_list(running_service: Shell) -> None:
    rows = json.loads(running_service("admin", "nodes", "list", "--json").stdout)
    assert [(entry["id"][:4], entry["state"]) for entry in rows] == [("UZZZ", "pending"), ("UABC", "revoked")]
    text = running_service("admin", "nodes", "list").stdout
    assert "Pending approval" in text
    assert "the mesh" in text
    assert "Revoked           sold" in text


def test_nodes_approve(running_service: Shell) -> None:
    assert running_service("admin", "nodes", "approve", "UABC").stdout == "Approved worker UABCDEFGH 'gpu-box' of alice.\n"
    assert running_service.mesh.calls[0].request == membership.ApproveMember("UABC")


def test_nodes_pardon(running_service: Shell) -> None:
    running_service.mesh.answer(gateway.pardon_node, gateway.PardonedNode(NodeId("UABCDEFGHIJ")))
    assert running_service("admin", "nodes", "pardon", "UABC").stdout == "Pardoned worker UABCDEFGH. It gets requests again.\n"
    assert json.loads(running_service("admin", "nodes", "pardon", "UABC", "--json").stdout) == {"node": "UABCDEFGHIJ"}
    assert [call.request for call in running_service.mesh.calls] == 2 * [gateway.PardonNode("UABC")]


@pytest.mark.parametrize(("options", "accepts", "can"), [((), True, "now"), (("--no",), False, "no longer")])
def test_nodes_consent_to_models(running_service: Shell, options: tuple[str, ...], can: str, *, accepts: bool) -> None:
    running_service.mesh.answer(gateway.set_model_consent, gateway.Consented(NodeId("UABCDEFGHIJ"), accepts))
    assert (
        running_service("admin", "nodes", "accept-models", "UABC", *options).stdout
        == f"Administrators can {can} put models on worker UABCDEFGH.\n"
    )
    assert running_service.mesh.calls[0].request == gateway.ConsentOnWorker(NodeId("UABC"), accepts)


def test_without_a_terminal_revoking_needs_yes(running_service: Shell) -> None:
    result = running_service("admin", "nodes", "revoke", "UABC")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert running_service.mesh.calls == []


def test_nodes_revoke_yes(running_service: Shell) -> None:
    result = running_service("admin", "nodes", "revoke", "UABC", "--yes", "--reason", "sold", "--json")
    assert json.loads(result.stdout)["state"] == "revoked"
    assert [call.request for call in running_service.mesh.calls] == [membership.RevokeMember("UABC", reason="sold")]


@pytest.mark.parametrize(("answer", "code", "revoked"), [("y\n", 0, True), ("n\n", 1, False), ("\n", 1, False)])
def test_terminal_asks_for_confirmation_and_names_the_node(
    running_service: Shell, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, revoked: bool
) -> None:
    at_a_terminal(monkeypatch)
    result = running_service("admin", "nodes", "revoke", "UABC", stdin=answer)
    assert result.exit_code == code
    assert "worker UABCDEFGH 'gpu-box' of alice" in result.stderr
    assert (running_service.mesh.calls[-1].method == "auth.revokeNode") is revoked


def test_refusal_of_auth_is_printed(running_service: Shell) -> None:
    running_service.mesh.answer(membership.revoke_member, errors.NotAllowed("an auth service cannot be revoked", hint="stop it"))
    result = running_service("admin", "nodes", "revoke", "UABC", "--yes")
    assert (result.exit_code, result.stderr) == (1, "error: an auth service cannot be revoked – stop it\n")
