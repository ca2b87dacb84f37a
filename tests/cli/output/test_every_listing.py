"""Every listing command, in every format, in narrow and wide terminals; no command is left out."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from cli import profile
from cli.ask import model_store
from cli.doctor import doctor_checks
from cli.output import printing
from cli.output.print_format import PrintFormat
from cli.output.table_layout import display_width
from cli.profile import Profile
from shared import amounts
from shared.api import auth, gateway, membership
from shared.api.inference import StoredModel, StoreResult
from shared.types import ModelName
from stack import status_overview
from tests.cli.fake_mesh import Shell
from tests.cli.output import listings
from tests.cli.output.listings import ARGUMENTS, CSV_NAME, FIRST, LISTINGS, SHOWN_NAME
from tests.cli.test_admin_mesh import NODE, member
from tests.cli.test_listings import WORKER

#: These print JSON for other programs, or a stream.
WITHOUT_FORMATS = {("mesh", "export"), ("top",)}


@pytest.fixture
def full_shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A machine where every listing has a row."""
    listings.answer_all(shell.mesh)
    folder = profile.folder_of_user(shell.environment)
    folder.mkdir(parents=True)
    profile.write(folder / "lab.toml", Profile(node_key_file=Path("k")))

    async def findings(*_: object) -> list[object]:
        return [listings.FINDING]

    async def programs(*_: object) -> list[object]:
        return [listings.STATUS]

    stored = StoredModel(
        name=ModelName(listings.NAME), digest="d" * 64, size=2**20, source="https://x.org/x", stored_at=listings.NOW, source_key="k"
    )
    monkeypatch.setattr(doctor_checks, "examine", findings)
    monkeypatch.setattr(status_overview, "collect", programs)
    monkeypatch.setattr(model_store, "_run", lambda *_, **__: StoreResult(models=(stored,)))
    return shell


def run(shell: Shell, command: tuple[str, ...], *options: str) -> Result:
    result = shell(*command, *ARGUMENTS.get(command, ()), *options)
    assert result.exit_code == 0, f"{command}: {result.stderr}"
    return result


def test_every_command_that_prints_json_takes_the_other_formats() -> None:
    lacking = {path for path, options in listings.commands() if "--json" in options and "-o" not in options}
    assert lacking == WITHOUT_FORMATS, "use cli.output.print_format"


@pytest.mark.parametrize("command", LISTINGS, ids=" ".join)
def test_listing_in_every_format(full_shell: Shell, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    # The displayed age may change between two runs.
    monkeypatch.setattr(amounts, "show_duration", lambda _seconds: "6 s")
    first = FIRST.get(command, SHOWN_NAME)
    found = {kind: run(full_shell, command, "-o", kind.value).stdout for kind in PrintFormat}
    data = json.loads(found[PrintFormat.JSON])
    assert yaml.safe_load(found[PrintFormat.YAML]) == data
    rows = list(csv.DictReader(io.StringIO(found[PrintFormat.CSV], newline="")))
    assert rows
    assert all(None not in row and None not in row.values() for row in rows), "every line has every cell"
    for kind in (PrintFormat.TABLE, PrintFormat.WIDE):
        assert first in found[kind]
    assert found[PrintFormat.TABLE] == run(full_shell, command).stdout
    text = "".join(found.values())
    assert "\x1b" not in text
    if first == SHOWN_NAME:
        assert any(CSV_NAME in cell for row in rows for cell in row.values()) or command == ("doctor",)
        assert not any(cell.startswith("=") for row in rows for cell in row.values())

    assert json.loads(run(full_shell, command, "--json").stdout) == data
    before = full_shell("--json", *command, *ARGUMENTS.get(command, ()))
    assert json.loads(before.stdout) == data
    within = full_shell(command[0], "--json", *command[1:], *ARGUMENTS.get(command, ()))
    assert json.loads(within.stdout) == data


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_listings_fit_the_terminal(full_shell: Shell, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(printing, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in LISTINGS:
        result = run(full_shell, command)
        assert FIRST.get(command, SHOWN_NAME) in result.stdout, command
        if command[0] in ("doctor", "usage", "quota", "report"):
            continue  # these print sentences beside the table
        if columns == 200:
            assert "no space" not in result.stderr, command
        widest = max(map(display_width, result.stdout.splitlines()))
        # The columns that are always shown need this much.
        assert widest <= max(columns, 49), (command, widest)


def test_wide_shows_whole_ids_and_every_column(full_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    full_shell.mesh.answer(membership.list_members, membership.Members((member(),)))
    full_shell.mesh.answer(gateway.list_nodes, gateway.NodeRows((WORKER,)))
    full_shell.mesh.answer(auth.list_api_keys, auth.ApiKeys((listings.KEY,)))
    assert NODE in run(full_shell, ("admin", "nodes", "list"), "-o", "wide").stdout
    assert WORKER.id in run(full_shell, ("nodes",), "-o", "wide").stdout
    assert str(listings.KEY.id) in run(full_shell, ("keys", "list"), "-o", "wide").stdout
    assert "d" * 64 in run(full_shell, ("models", "show"), "-o", "wide").stdout
    assert "no space for" in run(full_shell, ("nodes",)).stderr


@pytest.mark.parametrize(
    "options", [("--json", "nodes", "-o", "yaml"), ("nodes", "--json", "-o", "table"), ("-o", "csv", "nodes", "-o", "wide")], ids=" ".join
)
def test_two_formats_are_refused(full_shell: Shell, options: tuple[str, ...]) -> None:
    result = full_shell(*options)
    assert result.exit_code == 2
    assert "not both" in result.stderr


def test_an_unknown_format_is_refused_with_the_others(shell: Shell) -> None:
    result = shell("nodes", "-o", "xml")
    assert result.exit_code == 2
    assert "'table', 'wide', 'json', 'yaml', 'csv'" in result.stderr


@pytest.mark.parametrize("asked", [("-o", "json"), ("-ojson",), ("--json",)], ids=" ".join)
def test_errors_are_json_where_the_output_is(shell: Shell, asked: tuple[str, ...]) -> None:
    for arguments in (("nodes", *asked), (*asked, "nodes"), (*asked, "nodes", "--nonsense")):
        assert "code" in json.loads(shell(*arguments).stderr)["error"]
    assert shell("nodes", "-o", "yaml").stderr.startswith("error: ")


def test_csv_of_one_object_has_one_line(full_shell: Shell) -> None:
    full_shell.mesh.answer(auth.revoke_api_key, listings.KEY)
    (row,) = csv.DictReader(io.StringIO(full_shell("keys", "revoke", "x", "-o", "csv").stdout))
    assert (row["name"], row["is_active"], row["expires_at"]) == (CSV_NAME, "true", "")
    assert json.loads(row["bounds"]) == {"scopes": [], "models": [], "networks": []}


def test_an_empty_list_in_every_format(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_nodes, gateway.NodeRows(()))
    assert {kind.value: shell("nodes", "-o", kind.value).stdout for kind in PrintFormat} == {
        "table": "",
        "wide": "",
        "json": "[]\n",
        "yaml": "[]\n",
        "csv": "",
    }
