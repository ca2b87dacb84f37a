"""The audit log on the command line: the calls to auth, and offline verification of exported files."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace

from cli.admin import admin_commands
from cli.admin.audit import RESULTS, audit
from shared import audit_anchors, audit_chain, errors
from shared.api import audit as log
from shared.api.audit import AuditedAct, AuditReport, AuditRow, ChainState, Result
from shared.api.method import Nothing
from shared.audit_chain import ChainHead
from shared.types import MeshName, NodeId, TenantId, UserId
from tests.cli.fake_mesh import Shell

AT = datetime(2026, 2, 1, 10, 0, 0, 5, tzinfo=UTC)
TENANT = TenantId(UUID(int=7))
KEY = audit_anchors.signing_key(bytes(range(32)))
WHOLE = AuditReport((ChainState("house", 12, None, "", 2), ChainState(str(TENANT), 1, None, "", 1)), NodeId("UKEY"))
BROKEN = AuditReport((ChainState("house", 12, 5, "the row was changed", 2),))


def chain(name: str, count: int) -> list[AuditRow]:
    rows, head = [], audit_chain.START
    for number in range(1, count + 1):
        tenant = None if name == audit_chain.PLATFORM_CHAIN else TenantId(UUID(name))
        act = AuditedAct(
            AT + timedelta(seconds=number), "key.create", tenant, UserId(UUID(int=5)), target=f"key {number}", details={"name": "n"}
        )
        made = audit_chain.link(name, head, act, bytes(16))
        head = made.head
        rows.append(
            AuditRow(name, number, act, "alice", made.hash.hex(), False, made.prev_hash.hex(), made.details_digest.hex(), made.salt.hex())
        )
    return rows


HOUSE, OWN = chain("house", 20), chain(str(TENANT), 10)


def anchor(row: AuditRow) -> audit_anchors.Anchor:
    return audit_anchors.sign(KEY, MeshName("home"), row.chain, ChainHead(row.sequence, bytes.fromhex(row.hash)), AT)


ANCHORS = [anchor(HOUSE[9]), anchor(HOUSE[-1]), anchor(OWN[-1])]


@pytest.fixture
def audit_shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A mesh whose auth keeps a log."""
    monkeypatch.setitem(admin_commands.admin.commands, "audit", audit)
    shell.mesh.answer(log.list_audit, log.AuditRows((HOUSE[1], replace(HOUSE[0], actor_name="", erased=True))))
    shell.mesh.answer(log.verify_audit, WHOLE)
    shell.mesh.stream_answer(log.export_audit, [*HOUSE, *OWN], Nothing())
    return shell


def save(audit_shell: Shell, rows: list[AuditRow], name: str = "log.jsonl") -> str:
    file = audit_shell.folder / name
    file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return str(file)


def save_anchors(audit_shell: Shell, anchors: list[audit_anchors.Anchor]) -> str:
    file = audit_shell.folder / "anchors.jsonl"
    file.write_bytes(b"".join(map(audit_anchors.line, anchors)))
    return str(file)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_list_entries(audit_shell: Shell) -> None:
    head, first, second = audit_shell("admin", "audit", "list").stdout.splitlines()
    assert head.split() == ["TIME", "ACTOR", "ACTION", "RESULT", "TIMES", "TARGET", "ADDRESS", "DETAILS"]
    assert first.split()[2:] == ["alice", "key.create", "Done", "1", "key", "2", "–", "name:", "n"]
    assert second.split()[2] == str(UUID(int=5))
    assert "Erased" in second
    (one, _) = json.loads(audit_shell("admin", "audit", "list", "--json").stdout)
    assert (one["sequence"], one["act"]["action"], one["hash"]) == (2, "key.create", HOUSE[1].hash)


def test_filters_are_sent_to_auth(audit_shell: Shell) -> None:
    typed = ["--chain", "house", "--actor", "alice", "--action", "key", "--result", "refused", "--since", "2026-02-01", "--limit", "5"]
    assert audit_shell("admin", "audit", "list", *typed, "--before", "2026-02-01T10:00:00.000005").exit_code == 0
    sent = audit_shell.mesh.calls[0].request
    assert isinstance(sent, log.ListAudit)
    assert (sent.chain, sent.actor, sent.action, sent.result, sent.limit) == ("house", "alice", "key", Result.REFUSED, 5)
    assert sent.since == datetime(2026, 2, 1).astimezone()
    assert sent.before == datetime(2026, 2, 1, 10, 0, 0, 5).astimezone()


def test_no_matching_entries(audit_shell: Shell) -> None:
    audit_shell.mesh.answer(log.list_audit, log.AuditRows(()))
    result = audit_shell("admin", "audit", "list")
    assert (result.stdout, result.stderr) == ("", "No matching entries.\n")


def test_result_choices_match_the_api() -> None:
    assert tuple(Result) == RESULTS


# --- exporting -------------------------------------------------------------------------------------------------------


def test_export_file_is_private(audit_shell: Shell) -> None:
    file = audit_shell.folder / "taken.jsonl"
    result = audit_shell("admin", "audit", "export", "--output", str(file), "--chain", "house", "--since", "2026-02-01")
    assert (result.exit_code, result.stderr) == (0, f"30 rows written to {file}.\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert audit_shell.mesh.calls[0].request == log.ExportAudit("house", datetime(2026, 2, 1).astimezone())
    assert [msgspec.json.decode(line, type=AuditRow) for line in file.read_bytes().splitlines()] == [*HOUSE, *OWN]


def test_export_to_a_pipe_can_be_verified(audit_shell: Shell) -> None:
    file = audit_shell.folder / "piped.jsonl"
    file.write_bytes(audit_shell("admin", "audit", "export").stdout_bytes)
    assert audit_shell("admin", "audit", "verify", str(file)).exit_code == 0


def test_failed_export_leaves_no_file(audit_shell: Shell) -> None:
    async def breaks() -> None:
        raise errors.LinkLost("the link to auth broke")

    audit_shell.mesh.stream_answer(log.export_audit, HOUSE, Nothing(), breaks)
    file = audit_shell.folder / "taken.jsonl"
    assert audit_shell("admin", "audit", "export", "-o", str(file)).exit_code == 1
    assert [path.name for path in audit_shell.folder.iterdir()] == [".aimesh"]


# --- verifying on the mesh -------------------------------------------------------------------------------------------


def test_auth_verifies_its_own_log(audit_shell: Shell) -> None:
    result = audit_shell("admin", "audit", "verify", "--chain", "house")
    assert result.exit_code == 0
    assert result.stdout == "The audit log is intact: 2 chains, 13 rows, 3 signed anchors.\nThe anchors are signed with UKEY\n"
    assert audit_shell.mesh.calls[0].request == log.VerifyAudit("house")


def test_tampered_log_fails_the_command(audit_shell: Shell) -> None:
    audit_shell.mesh.answer(log.verify_audit, BROKEN)
    result = audit_shell("admin", "audit", "verify")
    assert result.exit_code == 1
    assert "The audit log is NOT INTACT" in result.stdout
    assert "  house: row 5: the row was changed\n" in result.stdout
    result = audit_shell("admin", "audit", "verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["chains"][0]["first_bad"]) == (1, 5)


def test_file_options_need_a_file(audit_shell: Shell) -> None:
    result = audit_shell("admin", "audit", "verify", "--partial")
    assert (result.exit_code, "require a FILE" in result.stderr, audit_shell.mesh.calls) == (2, True, [])


# --- verifying offline -----------------------------------------------------------------------------------------------


def test_auditor_needs_no_mesh(audit_shell: Shell) -> None:
    audit_shell.environment.clear()
    (audit_shell.folder / ".aimesh" / "profile.toml").unlink()
    result = audit_shell(
        "admin", "audit", "verify", save(audit_shell, [*HOUSE, *OWN]), "--anchors", save_anchors(audit_shell, ANCHORS), "--key", KEY.id
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("The audit log is intact: 2 chains, 30 rows, 3 signed anchors.\n")
    assert audit_shell.mesh.calls == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(
            [*HOUSE[:4], replace(HOUSE[4], act=replace(HOUSE[4].act, target="x")), *HOUSE[5:], *OWN], "house: row 5: ", id="edited"
        ),
        pytest.param([*HOUSE, *OWN[:3], *OWN[4:]], f"{TENANT}: row 4: row 4 is missing", id="deleted"),
        pytest.param([*HOUSE[:15], *OWN], "house: row 16: rows 16 to 20 are missing", id="cut off"),
        pytest.param(HOUSE, f"{TENANT}: row 1: rows 1 to 10 are missing", id="a whole chain gone"),
    ],
)
def test_tampered_file_is_found(audit_shell: Shell, rows: list[AuditRow], message: str) -> None:
    result = audit_shell("admin", "audit", "verify", save(audit_shell, rows), "--anchors", save_anchors(audit_shell, ANCHORS))
    assert (result.exit_code, message in result.stdout) == (1, True), result.stdout
    assert json.loads(audit_shell("admin", "audit", "verify", save(audit_shell, rows), "--json").stdout)["anchor_key"] == ""


def test_without_anchors_the_limits_are_explained(audit_shell: Shell) -> None:
    result = audit_shell("admin", "audit", "verify", save(audit_shell, HOUSE[:15]))
    assert (result.exit_code, "cut off at the end" in result.stderr) == (0, True)


def test_anchors_signed_by_another_key_prove_nothing(audit_shell: Shell) -> None:
    other = audit_anchors.signing_key(bytes(32))
    files = (save(audit_shell, [*HOUSE, *OWN]), "--anchors", save_anchors(audit_shell, ANCHORS))
    result = audit_shell("admin", "audit", "verify", *files, "--key", other.id)
    assert (result.exit_code, "house: row 10: the anchor of" in result.stdout, "forged" in result.stdout) == (1, True, True)
    result = audit_shell("admin", "audit", "verify", *files)
    assert (result.exit_code, KEY.id in result.stdout, "Compare this key" in result.stderr) == (0, True, True)


def test_partial_log_is_verified_as_partial(audit_shell: Shell) -> None:
    files = (save(audit_shell, HOUSE[12:]), "--anchors", save_anchors(audit_shell, ANCHORS))
    assert audit_shell("admin", "audit", "verify", *files).exit_code == 1
    result = audit_shell("admin", "audit", "verify", *files, "--partial")
    assert (result.exit_code, "1 chain, 8 rows, 1 signed anchor." in result.stdout) == (0, True)


def test_invalid_log_file_is_refused(audit_shell: Shell) -> None:
    file = audit_shell.folder / "notes.txt"
    file.write_text("hello\n")
    result = audit_shell("admin", "audit", "verify", str(file))
    assert (result.exit_code, "file: row 1: line 1 is not a row" in result.stdout) == (1, True)
    result = audit_shell("admin", "audit", "verify", save(audit_shell, HOUSE), "--anchors", str(file))
    assert (result.exit_code, "line 1 is not an anchor" in result.stderr) == (2, True)
    assert audit_shell("admin", "audit", "verify", str(Path("nowhere"))).exit_code == 2
