"""`aicli report`: its calls, and its output for people, spreadsheets and scripts."""

import csv
import io
import json
import random
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output import printing, table_layout
from cli.output.table_layout import LayoutColumn
from features.business_report import contract
from features.business_report.cli import report
from features.business_report.lists.report_rows import ReportLine
from shared import amounts, errors
from shared.api import auth, business
from shared.api.business import (
    ActiveUsers,
    BusinessGrouping,
    BusinessReport,
    BusinessRow,
    BusinessSum,
    GetBusinessReport,
    NewAccounts,
    NewOfDay,
)
from shared.types import MicroCredits, Tier, UserId, UserRole
from tests.cli.fake_mesh import Shell

TODAY = datetime.now(UTC).date()
ALICE = auth.User(UserId(UUID(int=5)), "alice", "alice@example.org", UserRole.USER, Tier.PRO, True, datetime(2026, 2, 1, tzinfo=UTC))
SUM = BusinessSum(
    succeeded=8, failed=1, timed_out=1, cancelled=2, limited=5, prompt_tokens=700, completion_tokens=300,
    cost_micro=MicroCredits(2_500_000),
    token_value_micro=MicroCredits(7_500_000), response_ms=9000, made_tokens=250, made_ms=8000, cached=3, saved_micro=MicroCredits(40_000),
    conversations=4, thumbs_up=3, thumbs_down=1, users=2,
)  # fmt: skip
NEW = NewAccounts((NewOfDay(TODAY - timedelta(days=1), 2, 3), NewOfDay(TODAY, 1, 1)))


def make_report(*names: str | None, more: bool = False, back: int = 0) -> BusinessReport:
    rows = tuple(BusinessRow(name, SUM) for name in names)
    return BusinessReport(SUM if rows else BusinessSum(), rows, more, MicroCredits(back), ActiveUsers(1, 2, 3, 4))


@pytest.fixture
def report_shell(shell: Shell) -> Shell:
    shell.mesh.answer(business.get_business_report, make_report("2026-03-01"))
    shell.mesh.answer(business.count_new_accounts, NEW)
    shell.mesh.answer(business.name_users, business.UserNames({str(ALICE.id): ALICE.username}))
    return shell


def test_usage_by_day(report_shell: Shell) -> None:
    lines = report_shell("report", "usage").stdout.splitlines()
    tomorrow = TODAY + timedelta(days=1)
    assert [entry.request for entry in report_shell.mesh.calls] == [
        GetBusinessReport(TODAY - timedelta(days=6), tomorrow, BusinessGrouping.DAY),
        business.CountNewAccounts(TODAY - timedelta(days=6), tomorrow),
    ]
    numbers = ["12", "2", "5", "700", "300", "31.2", "25", "%", "4", "2", "3", "of", "4"]
    assert " ".join(lines[0].split()) == "DAY REQUESTS FAILED LIMITED TOKENS IN OUT TOKENS/S CACHED CONVERSATIONS USERS LIKED"
    assert lines[1].split() == ["2026-03-01", *numbers]
    assert lines[2].split() == ["all", *numbers]
    assert lines[4:] == [
        "from balances 2.5 credits",
        "active users  1 in the last hour, 2 in 24 hours, 3 in 7 days, 4 in 30 days",
        "new           3 registered, 4 keys created",
    ]


#: A quiet day: no failures, no rate limits, no ratings.
QUIET = {
    "DAY": ["2026-11-21", "all"],
    "REQUESTS": ["7", "7"],
    "FAILED": ["0", "0"],
    "LIMITED": ["0", "0"],
    "TOKENS IN": ["62", "62"],
    "OUT": ["56", "56"],
    "TOKENS/S": ["27.2", "27.2"],
    "CACHED": ["0 %", "0 %"],
    "CONVERSATIONS": ["7", "7"],
    "USERS": ["1", "1"],
    "LIKED": ["–", "–"],
}


def hidden_columns(table: dict[str, list[str]], width: int) -> list[str]:
    columns = [LayoutColumn(title, cells, report.RANKS.get(title, 1)) for title, cells in table.items()]
    return [*table_layout.lay_out(columns, width).hidden]


@pytest.mark.parametrize(
    ("width", "hidden"),
    [
        (200, []),
        (118, []),
        (80, ["LIKED", "LIMITED", "CACHED"]),
        (60, ["LIKED", "LIMITED", "CACHED", "FAILED", "USERS", "CONVERSATIONS"]),
        # Even the narrowest terminal keeps the row's subject, the request count and the token count.
        (10, ["LIKED", "LIMITED", "CACHED", "FAILED", "USERS", "CONVERSATIONS", "TOKENS/S"]),
    ],
)
def test_narrow_terminal_hides_the_least_important_columns(width: int, hidden: list[str]) -> None:
    assert hidden_columns(QUIET, width) == hidden


def test_failure_column_is_hidden_last() -> None:
    assert hidden_columns({**QUIET, "FAILED": ["3", "3"]}, 70) == ["LIKED", "LIMITED", "CACHED", "USERS"]


def test_hidden_columns_are_mentioned(report_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "LIKED" in report_shell("report", "usage").stdout, "a pipe has all of it"
    monkeypatch.setattr(printing, "is_terminal", lambda: True)
    done = report_shell("report", "usage")
    assert "LIKED" not in done.stdout
    assert done.stderr.startswith("no space for liked, limited, ")
    assert "-o wide" in done.stderr
    report_shell.mesh.answer(business.get_business_report, make_report())
    assert "no room" not in report_shell("report", "usage").stderr


def test_cost_by_user_shows_usernames(report_shell: Shell) -> None:
    report_shell.mesh.answer(business.get_business_report, make_report(str(ALICE.id), str(UUID(int=6)), back=500_000))
    lines = report_shell("report", "cost", "--since", "2026-03-01", "--until", "2026-03-31", "--by", "user").stdout.splitlines()
    expected = GetBusinessReport(date(2026, 3, 1), date(2026, 4, 1), BusinessGrouping.USER, counts_repeated=True)
    assert report_shell.mesh.calls[0].request == expected
    assert lines[1].split() == ["alice", "12", "7.5", "2.5", "0.208333", "0.625", "25", "%", "0.04"]
    assert lines[2].split()[0] == str(UUID(int=6))
    assert "from balances 2 credits (0.5 refunded)" in lines
    assert "UPSTREAM" not in lines[0]


def test_money_of_providers(report_shell: Shell) -> None:
    found = make_report("assistant/api", None)
    sums = {"succeeded": 4, "upstream_micro": MicroCredits(1_000_000), "avoided_micro": MicroCredits(3_000_000), "external": 1}
    whole = msgspec.structs.replace(found.total, **sums)
    report_shell.mesh.answer(business.get_business_report, msgspec.structs.replace(found, total=whole))
    lines = report_shell("report", "cost", "--by", "target").stdout.splitlines()
    assert report_shell.mesh.calls[0].request.by is BusinessGrouping.TARGET  # type: ignore[attr-defined]
    assert [word for word in lines[0].split() if word in ("UPSTREAM", "AVOIDED", "INTERNAL")] == ["UPSTREAM", "AVOIDED", "INTERNAL"]
    assert lines[1].startswith("assistant/api ")
    assert "upstream      1 credits to providers, 3 avoided: 75 % less" in lines


@pytest.mark.parametrize(("repeated", "share"), [(4, "75 % of 4 repeated questions"), (0, "– of 0 repeated questions")])
def test_cost_says_what_the_cache_answered(report_shell: Shell, repeated: int, share: str) -> None:
    report_shell.mesh.answer(business.get_business_report, msgspec.structs.replace(make_report("pro"), repeated=repeated))
    lines = report_shell("report", "cost", "--by", "plan").stdout.splitlines()
    assert f"cache         3 answers: 25 % of all requests, {share}" in lines


def test_labels_of_a_worker_form_one_name(report_shell: Shell) -> None:
    report_shell.mesh.answer(business.get_business_report, make_report('{"region": "eu", "gpu": "a100"}', None))
    lines = report_shell("report", "usage", "--by", "label").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["gpu=a100 region=eu", "–"]
    report_shell.mesh.answer(business.get_business_report, make_report("eu"))
    assert report_shell("report", "usage", "--by", "label", "--label", "region").stdout.splitlines()[1].startswith("eu ")
    assert report_shell.mesh.calls[-2].request.label == "region"  # type: ignore[attr-defined]


def test_csv_is_exact_and_contains_no_formula(report_shell: Shell) -> None:
    report_shell.mesh.answer(business.get_business_report, make_report("=HYPERLINK(1)", 'a "quoted", name', None))
    rows = list(csv.DictReader(io.StringIO(report_shell("report", "cost", "--by", "model", "--csv").stdout)))
    assert [row["model"] for row in rows] == ["'=HYPERLINK(1)", 'a "quoted", name', ""]
    assert {row["cost_micro"] for row in rows} == {"2500000"}
    assert {row["cost_credits"] for row in rows} == {"2.5"}
    assert {row["requests"] for row in rows} == {"12"}


def test_json_has_everything(report_shell: Shell) -> None:
    report_shell.mesh.answer(business.get_business_report, make_report(str(ALICE.id)))
    shown = json.loads(report_shell("report", "cost", "--by", "user", "--json").stdout)
    assert (shown["by"], shown["total"]["cost_micro"], shown["active"]["month"]) == ("user", 2_500_000, 4)
    assert shown["rows"][0]["name"] == "alice"
    assert report_shell.mesh.calls[-1].request == business.NameUsers((ALICE.id,))
    assert shown["new"]["days"][1] == {"day": TODAY.isoformat(), "registrations": 1, "keys": 1}


def test_empty_report_says_what_to_do(report_shell: Shell) -> None:
    report_shell.mesh.answer(business.get_business_report, make_report())
    result = report_shell("report", "usage")
    assert "--since 30d" in result.stderr
    assert "REQUESTS" not in result.stdout


def test_missing_answer_of_auth_is_mentioned(report_shell: Shell) -> None:
    report_shell.mesh.answer(business.get_business_report, make_report(str(ALICE.id), more=True))
    report_shell.mesh.answer(business.count_new_accounts, errors.Unavailable("PostgreSQL does not answer"))
    result = report_shell("report", "cost", "--by", "user")
    assert (result.exit_code, str(ALICE.id) in result.stdout, "registered" in result.stdout) == (0, True, False)
    assert "names and new accounts are missing" in result.stderr
    assert "only the first 1 rows are shown" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since", "yesterday"), "use 7d, 4w or a day"),
        (("--since", "0d"), "use 7d, 4w or a day"),
        (("--since", "99999999w"), "use 7d, 4w or a day"),
        (("--since", "2026-03-05", "--until", "2026-03-04"), "is after the last day"),
        (("--label", "region"), "--by label"),
        (("--csv", "--json"), "not both"),
    ],
)
def test_invalid_options_are_refused_before_any_call(report_shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    result = report_shell("report", "usage", *arguments)
    assert (result.exit_code, report_shell.mesh.calls) == (2, [])
    assert message in result.stderr


@given(st.integers(1, 5000), st.dates(date(2000, 1, 1)))
def test_days_end_today(days: int, today: date) -> None:
    assert (today - report.first_day(f"{days}d", today)).days == days - 1


def make_sum(seed: int) -> BusinessSum:
    """Return random numbers. A hypothesis strategy would take ten times as long."""
    draw = random.Random(seed)
    return BusinessSum(**{name: draw.choice((0, 1, 10**12, draw.randrange(10**12))) for name in BusinessSum.__struct_fields__})


SUMS = st.builds(make_sum, st.integers(0))


@given(st.lists(st.tuples(st.none() | st.text(), SUMS), max_size=5))
def test_csv_numbers_are_exact(rows: list[tuple[str | None, BusinessSum]]) -> None:
    text = report.written_csv(BusinessGrouping.MODEL, [ReportLine(name, one) for name, one in rows])
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [{name: int(line[name]) for name in BusinessSum.__struct_fields__} for line in read] == [
        {name: getattr(one, name) for name in BusinessSum.__struct_fields__} for _, one in rows
    ]
    assert [amounts.read(line["cost_credits"]) for line in read] == [one.cost_micro for _, one in rows]


STATEMENT = contract.OwnerStatement(
    owner="alice", requests=12, prompt_tokens=700, completion_tokens=300, earned_micro=MicroCredits(2_500_000), earned_share=None,
    kwh=1.5, measured_by=("counter", "power"), energy_cost=0.45,
)  # fmt: skip


def test_owners_see_a_month(shell: Shell) -> None:
    shell.mesh.answer(contract.get_owner_statements, contract.OwnerStatements("2026-03", (STATEMENT,), ""))
    head, line = shell("report", "owners", "--month", "2026-03", "-o", "wide").stdout.splitlines()
    assert [entry.request for entry in shell.mesh.calls] == [contract.GetOwnerStatements("2026-03")]
    assert " ".join(head.split()) == "OWNER REQUESTS TOKENS IN TOKENS OUT EARNED KWH ENERGY COST MEASURED BY"
    assert line.split() == ["alice", "12", "700", "300", "2.5", "1.500", "0.450", "counter,", "power"]
    (written,) = csv.DictReader(io.StringIO(shell("report", "owners", "--csv").stdout))
    assert (written["owner"], written["kwh"], written["energy_cost"]) == ("alice", "1.5", "0.45")


def test_administrators_see_shares_and_why_there_is_no_energy(shell: Shell) -> None:
    unmeasured = msgspec.structs.replace(STATEMENT, owner=None, earned_share=0.25, kwh=None, measured_by=(), energy_cost=None)
    shell.mesh.answer(contract.get_owner_statements, contract.OwnerStatements("2026-03", (unmeasured,), "no history"))
    found = shell("report", "owners")
    assert [entry.request for entry in shell.mesh.calls] == [contract.GetOwnerStatements(f"{TODAY:%Y-%m}")]
    assert "No owner or node" in found.stdout
    assert "25 %" in found.stdout
    assert "the energy is unknown: no history" in found.stderr
