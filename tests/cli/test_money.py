"""Credits, prices and the ledger: the calls to the gateway, and the output for people and scripts."""

import json
from datetime import UTC, datetime
from uuid import UUID

import click
import pytest

from cli.output import credit_amounts
from shared import errors
from shared.api import auth, ledger
from shared.api.auth import Budget, Every
from shared.api.ledger import Account, Allowance, LedgerReport, ModelPrice
from shared.types import MicroCredits, ModelName, RequestId, Tier, UserId, UserRole
from tests.cli.fake_mesh import Shell

RENEWS = datetime(2026, 2, 1, tzinfo=UTC)
ALLOWANCE = Allowance(100_000, 2_500, 0, RENEWS)
ACCOUNT = Account(MicroCredits(12_500_000), MicroCredits(250_000), MicroCredits(0), ALLOWANCE)
ALICE = auth.User(UserId(UUID(int=5)), "alice", "alice@example.org", UserRole.USER, Tier.PRO, True, RENEWS)
REQUEST = RequestId(UUID("019c0000-0000-7000-8000-000000000001"))
PRICES = (
    ModelPrice(None, MicroCredits(100_000_000), MicroCredits(200_000_000), since=datetime(1970, 1, 1, tzinfo=UTC)),
    ModelPrice(ModelName("smollm2"), MicroCredits(1), MicroCredits(0), MicroCredits(500_000), MicroCredits(3_000_000), 2, RENEWS),
)
RIGHT = LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 12, 345, 2)


@pytest.fixture
def ledger_shell(shell: Shell) -> Shell:
    """A mesh whose gateway keeps a ledger."""
    shell.mesh.answer(auth.get_user_called, ALICE)
    shell.mesh.answer(ledger.read_account, ACCOUNT)
    shell.mesh.answer(ledger.top_up, ACCOUNT)
    shell.mesh.answer(ledger.revert_request, ACCOUNT)
    shell.mesh.answer(ledger.list_prices, ledger.ModelPrices(PRICES))
    shell.mesh.answer(ledger.set_price, ledger.ModelPrices(PRICES))
    shell.mesh.answer(ledger.verify_ledger, RIGHT)
    return shell


# --- accounts --------------------------------------------------------------------------------------------------------


def test_credits_of_a_user(ledger_shell: Shell) -> None:
    lines = ledger_shell("admin", "credits", "alice").stdout.splitlines()
    assert [entry.request for entry in ledger_shell.mesh.calls] == [auth.GetUserCalled("alice"), ledger.ReadAccount(ALICE.id)]
    assert lines == [
        "tokens left   97,500; 2,500 of 100,000 used; renews 1 Feb 2026",
        "credits left  12.25",
        "topped up     12.5",
        "held          0.25 by running requests",
    ]
    shown = json.loads(ledger_shell("admin", "credits", "alice", "--json").stdout)
    assert shown == {
        "balance_micro": 12_500_000,
        "reserved_micro": 250_000,
        "overage_micro": 0,
        "allowance": {"included": 100_000, "used": 2_500, "held": 0, "renews_at": "2026-02-01T00:00:00Z"},
        "budget": None,
        "spent_micro": 0,
    }


def test_unlimited_account_shows_its_debt() -> None:
    account = Account(MicroCredits(-1_500_000), MicroCredits(0), allowance=Allowance(None, 7, 3, RENEWS))
    assert [*credit_amounts.account_lines(account)] == [
        "tokens left   unlimited; 7 used, 3 held by running requests; renews 1 Feb 2026",
        "credits left  unlimited",
        "owed          1.5",
    ]


def test_account_without_a_plan_shows_what_it_spent() -> None:
    budget = Budget(MicroCredits(2_000_000), Every.MONTH)
    account = Account(MicroCredits(-1_500_000), MicroCredits(0), budget=budget, spent_micro=MicroCredits(1_250_000))
    assert [*credit_amounts.account_lines(account)] == [
        "credits left  0.75",
        "spent         1.5",
        "budget        1.25 of 2 credits every month spent",
    ]


@pytest.mark.parametrize(
    ("typed", "micro"),
    [
        (["100"], 100_000_000),
        (["0.000001"], 1),
        (["-2.5", "--note", "typed twice"], -2_500_000),
        (["--note", "typed twice", "-.5"], -500_000),
        (["--note", "typed twice", "--", "-5"], -5_000_000),
        (["--note", "-5", "5"], 5_000_000),
    ],
)
def test_top_up(ledger_shell: Shell, typed: list[str], micro: int) -> None:
    result = ledger_shell("admin", "credits", "alice", *typed)
    assert result.exit_code == 0, result.stderr
    assert "credits left  12.25\n" in result.stdout
    sent = ledger_shell.mesh.calls[0].request
    assert isinstance(sent, ledger.TopUp)
    assert (sent.user, sent.amount_micro) == ("alice", micro)
    assert sent.note == (typed[typed.index("--note") + 1] if "--note" in typed else "")
    # Generated if none was given, so that a lost request can be retried.
    assert sent.transfer_id is not None


def test_transfer_id_can_be_given(ledger_shell: Shell) -> None:
    assert ledger_shell("admin", "credits", "alice", "5", "--transfer-id", str(REQUEST)).exit_code == 0
    assert ledger_shell.mesh.calls[0].request == ledger.TopUp("alice", MicroCredits(5_000_000), transfer_id=REQUEST)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["2,5"], "such as 2.5"),
        (["1e3"], "not an amount"),
        (["0.0000001"], "more than 6 decimals"),
        (["0"], "changes nothing"),
        (["--jsn"], "Did you mean '--json'?"),
        (["5", "--nte", "x"], "Did you mean '--note'?"),
        (["-5", "--nte", "x"], "Did you mean '--note'?"),
        (["--note", "x"], "require an AMOUNT"),
        (["5", "--transfer-id", "x"], "UUID"),
    ],
)
def test_mistyped_top_up_makes_no_call(ledger_shell: Shell, typed: list[str], message: str) -> None:
    result = ledger_shell("admin", "credits", "alice", *typed)
    assert result.exit_code == 2
    assert message in result.stderr
    assert ledger_shell.mesh.calls == []


def test_lost_answer_says_how_to_retry_safely(ledger_shell: Shell) -> None:
    ledger_shell.mesh.answer(ledger.top_up, errors.LinkLost("the link to the gateway broke"))
    result = ledger_shell("admin", "credits", "alice", "5")
    sent = ledger_shell.mesh.calls[0].request
    assert isinstance(sent, ledger.TopUp)
    assert f"--transfer-id {sent.transfer_id}" in result.stderr
    ledger_shell.mesh.answer(ledger.top_up, errors.NotAllowed("alice is no administrator", hint="ask one"))
    assert "ask one" in ledger_shell("admin", "credits", "alice", "5").stderr


# --- prices ----------------------------------------------------------------------------------------------------------


def test_prices(ledger_shell: Shell) -> None:
    lines = ledger_shell("admin", "prices", "list").stdout.splitlines()
    assert lines[1].split() == ["Default", "100", "200", "0", "0", "1", "50", "Always"]
    assert lines[2].split()[:6] == ["smollm2", "0.000001", "0", "0.5", "3", "2"]
    assert json.loads(ledger_shell("admin", "prices", "list", "--history", "--json").stdout)[0] == {
        "model": None,
        "input_micro_per_million": 100_000_000,
        "output_micro_per_million": 200_000_000,
        "request_micro": 0,
        "compute_second_micro": 0,
        "allowance_weight": 1,
        "since": "1970-01-01T00:00:00Z",
        "batch_percent": 50,
    }
    assert [entry.request for entry in ledger_shell.mesh.calls] == [ledger.ListPrices(), ledger.ListPrices(history=True)]


def test_price_is_set_exactly(ledger_shell: Shell) -> None:
    result = ledger_shell("admin", "prices", "set", "default", "--input", ".00015", "--output", ".0003")
    assert result.exit_code == 0, result.stderr
    options = ["--input", "0.000000000001", "--output", "0", "--request", ".5", "--compute-second", "3", "--weight", "0"]
    assert ledger_shell("admin", "prices", "set", "smollm2", *options).exit_code == 0
    assert [entry.request for entry in ledger_shell.mesh.calls] == [
        ledger.SetPrice(ModelPrice(None, MicroCredits(150_000_000), MicroCredits(300_000_000))),
        ledger.SetPrice(
            ModelPrice(ModelName("smollm2"), MicroCredits(1), MicroCredits(0), MicroCredits(500_000), MicroCredits(3_000_000), 0)
        ),
    ]


def test_examples_of_prices_are_set_with_one_command(ledger_shell: Shell) -> None:
    assert ledger_shell("admin", "prices", "examples").exit_code == 0
    sent = [entry.request.price for entry in ledger_shell.mesh.calls if isinstance(entry.request, ledger.SetPrice)]
    prices = [(one.model, one.input_micro_per_million, one.output_micro_per_million) for one in sent]
    # Of the documents: 0.0001 and 0.0002, 0.00015 and 0.0003 a token.
    assert prices == [
        (None, 100_000_000, 200_000_000),
        ("llama-2-7b", 100_000_000, 200_000_000),
        ("mistral-7b", 150_000_000, 300_000_000),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", ".1"], "--output"),
        (["--input", "-1", "--output", "1"], "0 or more"),
        (["--input", "0.0000000000001", "--output", "1"], "more than 12 decimals"),
        (["--input", "1", "--output", "1", "--request", "0.0000001"], "more than 6 decimals"),
        (["--input", "1", "--output", "1", "--weight", "1001"], "--weight"),
    ],
)
def test_invalid_price(ledger_shell: Shell, options: list[str], message: str) -> None:
    result = ledger_shell("admin", "prices", "set", "smollm2", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert ledger_shell.mesh.calls == []


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_ledger_is_consistent(ledger_shell: Shell) -> None:
    result = ledger_shell("admin", "ledger", "verify")
    assert (result.exit_code, result.stdout) == (0, "The ledger is OK: 12 accounts, 345 entries, 2 open reservations.\n")


def test_singular_forms(ledger_shell: Shell) -> None:
    ledger_shell.mesh.answer(ledger.verify_ledger, LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 1, 1, 1))
    assert ledger_shell("admin", "ledger", "verify").stdout == "The ledger is OK: 1 account, 1 entry, 1 open reservation.\n"


@pytest.mark.parametrize(
    "report",
    [
        LedgerReport(MicroCredits(-1), MicroCredits(0), MicroCredits(0), 0, 12, 345, 2, ("accounts differ",)),
        LedgerReport(MicroCredits(0), MicroCredits(1), MicroCredits(0), 0, 12, 345, 2),
        LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(1), 0, 12, 345, 2),
        LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 1, 12, 345, 2),
        LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 12, 345, 2, drift_tokens=1),
        LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 12, 345, 2, ("accounts differ",)),
    ],
)
def test_inconsistent_ledger_fails_the_command(ledger_shell: Shell, report: LedgerReport) -> None:
    ledger_shell.mesh.answer(ledger.verify_ledger, report)
    result = ledger_shell("admin", "ledger", "verify")
    assert (result.exit_code, "WRONG" in result.stdout) == (1, True)
    assert ("  accounts differ" in result.stdout) == bool(report.findings)
    result = ledger_shell("admin", "ledger", "verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["drift_micro"]) == (1, report.drift_micro)


def test_request_is_refunded(ledger_shell: Shell) -> None:
    result = ledger_shell("admin", "ledger", "revert", str(REQUEST), "--note", "sorry")
    assert result.stdout.startswith("Refunded. The account now:\ntokens left   97,500; ")
    assert ledger_shell.mesh.calls[0].request == ledger.RevertRequest(REQUEST, "sorry")
    assert ledger_shell("admin", "ledger", "revert", "nonsense").exit_code == 2


def test_omitted_amount_is_none() -> None:
    context = click.Context(click.Command("x"))
    assert credit_amounts.reader()(context, click.Option(["--budget"]), None) is None
