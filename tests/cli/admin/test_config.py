"""admin config: files, changes as diffs, history and rollback."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cli.admin import config
from shared import errors
from shared.api import configuration
from shared.api.configuration import (
    AppliedConfig,
    ApplyConfig,
    ConfigChange,
    ConfigVersion,
    ConfigVersions,
    ExportedConfig,
    ImportEnvironment,
    ListConfigVersions,
    RollbackConfig,
)
from shared.config_documents import ConfigKind
from tests.cli.fake_mesh import Shell

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROUTE = "targets:\n  - name: local\n    model: smollm2\n"
CHANGE = ConfigChange(ConfigKind.ROUTE, "assistant", ROUTE, ROUTE.replace("smollm2", "next\x1b[31m"), 3)


def version(number: int = 3, body: str | None = None, **changed: Any) -> ConfigVersion:
    fields: dict[str, Any] = {
        "kind": ConfigKind.ROUTE, "name": "assistant", "version": number, "revision": 17, "body": body, "removes": False,
        "origin": "applied",
        "author": "ann", "note": "", "created_at": NOW, "is_current": number == 3,
    }  # fmt: skip
    return ConfigVersion(**{**fields, **changed})


def test_the_copies_are_current() -> None:
    assert config.MAX_FILE_BYTES == configuration.MAX_FILE_BYTES
    assert tuple(ConfigKind) == config.KINDS


def test_changes_are_shown_as_diffs(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("routes: …", encoding="utf-8")
    shell.mesh.answer(configuration.apply_config, AppliedConfig(17, (CHANGE,), ("no worker serves next",)))
    done = shell("admin", "config", "apply", "-f", str(file), "--note", "try it", "--revision", "16", "--prune")
    assert done.exit_code == 0
    assert done.stdout == (
        "route assistant (version 3)\n--- before\n+++ after\n@@ -1,3 +1,3 @@\n targets:\n   - name: local\n"
        "-    model: smollm2\n+    model: next[31m\n"
    )
    assert done.stderr == "warning: no worker serves next\nApplied as revision 17.\n"
    assert shell.mesh.calls[0].request == ApplyConfig("routes: …", expected_revision=16, prune=True, note="try it")


def test_a_dry_run_and_no_changes(shell: Shell) -> None:
    shell.mesh.answer(configuration.apply_config, AppliedConfig(16, (ConfigChange(ConfigKind.PLAN, "free", None, None, 0, is_cut=True),)))
    done = shell("admin", "config", "apply", "-f", "-", "--dry-run", stdin="plans: {}")
    assert (done.stdout, done.stderr) == ("plan free\n  changed; too much to show here\n", "Dry run: nothing was changed.\n")
    assert shell.mesh.calls[0].request == ApplyConfig("plans: {}", dry_run=True)
    shell.mesh.answer(configuration.import_environment, AppliedConfig(16, ()))
    done = shell("admin", "config", "import-environment")
    assert (done.stdout, done.stderr) == ("", "No changes. The configuration is at revision 16.\n")
    assert shell.mesh.calls[1].request == ImportEnvironment()


def test_changes_as_json(shell: Shell) -> None:
    shell.mesh.answer(configuration.apply_config, AppliedConfig(17, (CHANGE,)))
    done = shell("admin", "config", "apply", "-f", "-", "--json", stdin="x")
    assert json.loads(done.stdout)["changes"][0]["name"] == "assistant"


def test_mistakes_are_lines(shell: Shell) -> None:
    shell.mesh.answer(configuration.apply_config, errors.BadRequest("the configuration has 2 mistakes\nline 1, a: b\nline 2, c: d"))
    done = shell("admin", "config", "apply", "-f", "-", stdin="x")
    assert done.exit_code == 2
    assert done.stderr == "line 1, a: b\nline 2, c: d\nerror: the configuration has 2 mistakes\n"


def test_files_that_cannot_be_read(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"#" * (config.MAX_FILE_BYTES + 1))
    for name, reason in (
        ("missing", "can't be read: No such file or directory"), ("", "can't be read: Is a directory"),
        ("binary", "can't be read: it is not UTF-8 text"), ("large", "has more than 983040 bytes"),
    ):  # fmt: skip
        done = shell("admin", "config", "apply", "-f", str(tmp_path / name))
        assert (done.exit_code, done.stdout) == (2, "")
        assert reason in done.stderr, name
    assert shell.mesh.calls == []


def test_export_and_show(shell: Shell) -> None:
    shell.mesh.answer(configuration.export_config, ExportedConfig(17, "default_model: a\n", ("TIER_FREE is ignored for plan free",)))
    assert shell("admin", "config", "export").stdout == "default_model: a\n"
    shell.mesh.answer(configuration.list_config_versions, ConfigVersions((version(body=ROUTE),)))
    assert shell("admin", "config", "show", "route/assistant").stdout == ROUTE
    assert shell.mesh.calls[-1].request == ListConfigVersions(ConfigKind.ROUTE, "assistant", bodies=True, limit=1)
    done = shell("admin", "config", "show")
    assert "assistant" in done.stdout
    assert done.stderr == "TIER_FREE is ignored for plan free\n"


def test_history_marks_the_current_version(shell: Shell) -> None:
    shell.mesh.answer(configuration.list_config_versions, ConfigVersions((version(), version(2, removes=True))))
    done = shell("admin", "config", "history", "route/assistant", "--limit", "7", "-o", "wide")
    assert "3 (current)" in done.stdout
    assert "removed" in done.stdout
    assert shell.mesh.calls[0].request == ListConfigVersions(ConfigKind.ROUTE, "assistant", limit=7)


def test_two_versions_are_compared(shell: Shell) -> None:
    def answer(request: ListConfigVersions) -> ConfigVersions:
        number = request.version or 3
        return ConfigVersions(() if number > 3 else (version(number, f"model: m{number}\n"),))

    shell.mesh.answer(configuration.list_config_versions, answer)
    for arguments, old, new in (((), 2, 3), (("1",), 1, 3), (("1", "2"), 1, 2)):
        done = shell("admin", "config", "diff", "route/assistant", *arguments)
        assert done.stdout == f"--- version {old}\n+++ version {new}\n@@ -1 +1 @@\n-model: m{old}\n+model: m{new}\n"
    done = shell("admin", "config", "diff", "route/assistant", "9")
    assert "there is no version 9 of route 'assistant'" in done.stderr


def test_rollback(shell: Shell) -> None:
    shell.mesh.answer(configuration.rollback_config, AppliedConfig(18, (CHANGE,)))
    assert shell("admin", "config", "rollback", "route/assistant", "1", "--note", "bad").exit_code == 0
    assert shell.mesh.calls[0].request == RollbackConfig(ConfigKind.ROUTE, "assistant", 1, note="bad")


@pytest.mark.parametrize("wrong", ["assistant", "robot/assistant", "route/"])
def test_a_document_is_kind_and_name(shell: Shell, wrong: str) -> None:
    done = shell("admin", "config", "show", wrong)
    assert done.exit_code == 2
    assert f"'{wrong}' is not KIND/NAME, such as route/assistant; kinds: route, policy, plan, model_limit, default_model" in done.stderr
