"""Credits, prices and the ledger: what is asked of the gateway, exactly, and what people and scripts read."""

import json
from datetime import UTC, datetime
from uuid import UUID

import click
import pytest

from cli.output import credit_amounts
from shared import errors
from shared.api import auth, ledger
from shared.api.ledger import Account, LedgerReport, ModelPrice
from shared.types import MicroCredits, ModelName, RequestId, Tier, UserId, UserRole
from tests.cli.fake_mesh import Shell

RENEWS = datetime(2026, 2, 1, tzinfo=UTC)
ACCOUNT = Account(MicroCredits(99_750_000), MicroCredits(12_500_000), MicroCredits(250_000), MicroCredits(100_000_000), RENEWS)
ALICE = auth.User(UserId(UUID(int=5)), "alice", "alice@example.org", UserRole.USER, Tier.PRO, True, RENEWS)
REQUEST = RequestId(UUID("019c0000-0000-7000-8000-000000000001"))
PRICES = (
    ModelPrice(None, MicroCredits(100_000_000), MicroCredits(200_000_000), since=datetime(1970, 1, 1, tzinfo=UTC)),
    ModelPrice(ModelName("smollm2"), MicroCredits(1), MicroCredits(0), MicroCredits(500_000), MicroCredits(3_000_000), RENEWS),
)
RIGHT = LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 12, 345, 2)


@pytest.fixture
def bank(shell: Shell) -> Shell:
    """A mesh whose gateway keeps books."""
    shell.mesh.answer(auth.get_user_called, ALICE)
    shell.mesh.answer(ledger.read_account, ACCOUNT)
    shell.mesh.answer(ledger.top_up, ACCOUNT)
    shell.mesh.answer(ledger.revert_request, ACCOUNT)
    shell.mesh.answer(ledger.list_prices, ledger.ModelPrices(PRICES))
    shell.mesh.answer(ledger.set_price, ledger.ModelPrices(PRICES))
    shell.mesh.answer(ledger.verify_ledger, RIGHT)
    return shell


# --- accounts --------------------------------------------------------------------------------------------------------


def test_credits_of_somebody(bank: Shell) -> None:
    lines = bank("admin", "credits", "alice").stdout.splitlines()
    assert [entry.request for entry in bank.mesh.asked] == [auth.GetUserCalled("alice"), ledger.ReadAccount(ALICE.id)]
    assert lines[0] == "credits left  112"
    assert lines[1].startswith("included      99.75 of 100 per month, renews 2026-0")
    assert lines[2:] == ["topped up     12.5", "held          0.25 by running requests"]
    shown = json.loads(bank("admin", "credits", "alice", "--json").stdout)
    assert shown == {
        "included_micro": 99_750_000,
        "balance_micro": 12_500_000,
        "reserved_micro": 250_000,
        "monthly_micro": 100_000_000,
        "renews_at": "2026-02-01T00:00:00Z",
    }


def test_an_account_without_a_bound_shows_what_is_owed() -> None:
    account = Account(MicroCredits(0), MicroCredits(-1_500_000), MicroCredits(0), None, RENEWS)
    assert [*credit_amounts.account_lines(account)] == ["credits left  unlimited", "owed          1.5"]


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
def test_top_up(bank: Shell, typed: list[str], micro: int) -> None:
    result = bank("admin", "credits", "alice", *typed)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("credits left  112\n")
    asked = bank.mesh.asked[0].request
    assert isinstance(asked, ledger.TopUp)
    assert (asked.user, asked.amount_micro) == ("alice", micro)
    assert asked.note == (typed[typed.index("--note") + 1] if "--note" in typed else "")
    # Made even where nobody gave one, so that a lost answer can be asked for again.
    assert asked.transfer_id is not None


def test_a_transfer_can_be_named(bank: Shell) -> None:
    assert bank("admin", "credits", "alice", "5", "--transfer-id", str(REQUEST)).exit_code == 0
    assert bank.mesh.asked[0].request == ledger.TopUp("alice", MicroCredits(5_000_000), transfer_id=REQUEST)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["2,5"], "such as 2.5"),
        (["1e3"], "not an amount"),
        (["0.0000001"], "more than 6 decimals"),
        (["0"], "changes nothing"),
        (["--jsn"], "'--jsn' is not an amount"),
        (["5", "--nte", "x"], "unexpected extra argument"),
        (["--note", "x"], "require an AMOUNT"),
        (["5", "--transfer-id", "x"], "UUID"),
    ],
)
def test_a_top_up_that_is_mistyped_asks_nobody(bank: Shell, typed: list[str], says: str) -> None:
    result = bank("admin", "credits", "alice", *typed)
    assert result.exit_code == 2
    assert says in result.stderr
    assert bank.mesh.asked == []


def test_a_top_up_whose_answer_is_lost_says_how_to_make_sure(bank: Shell) -> None:
    bank.mesh.answer(ledger.top_up, errors.LinkLost("the link to the gateway broke"))
    result = bank("admin", "credits", "alice", "5")
    asked = bank.mesh.asked[0].request
    assert isinstance(asked, ledger.TopUp)
    assert f"--transfer-id {asked.transfer_id}" in result.stderr
    bank.mesh.answer(ledger.top_up, errors.NotAllowed("alice is no administrator", hint="ask one"))
    assert "ask one" in bank("admin", "credits", "alice", "5").stderr


# --- prices ----------------------------------------------------------------------------------------------------------


def test_prices(bank: Shell) -> None:
    lines = bank("admin", "prices", "list").stdout.splitlines()
    assert lines[1].split() == ["default", "0.0001", "0.0002", "0", "0", "–"]
    assert lines[2].split()[:5] == ["smollm2", "0.000000000001", "0", "0.5", "3"]
    assert json.loads(bank("admin", "prices", "list", "--history", "--json").stdout)[0] == {
        "model": None,
        "input_micro_per_million": 100_000_000,
        "output_micro_per_million": 200_000_000,
        "request_micro": 0,
        "compute_second_micro": 0,
        "since": "1970-01-01T00:00:00Z",
    }
    assert [entry.request for entry in bank.mesh.asked] == [ledger.ListPrices(), ledger.ListPrices(history=True)]


def test_a_price_is_set_exactly(bank: Shell) -> None:
    result = bank("admin", "prices", "set", "default", "--input", ".00015", "--output", ".0003")
    assert result.exit_code == 0, result.stderr
    options = ["--input", "0.000000000001", "--output", "0", "--request", ".5", "--compute-second", "3"]
    assert bank("admin", "prices", "set", "smollm2", *options).exit_code == 0
    assert [entry.request for entry in bank.mesh.asked] == [
        ledger.SetPrice(ModelPrice(None, MicroCredits(150_000_000), MicroCredits(300_000_000))),
        ledger.SetPrice(ModelPrice(ModelName("smollm2"), MicroCredits(1), MicroCredits(0), MicroCredits(500_000), MicroCredits(3_000_000))),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--input", ".1"], "--output"),
        (["--input", "-1", "--output", "1"], "0 or more"),
        (["--input", "0.0000000000001", "--output", "1"], "more than 12 decimals"),
        (["--input", "1", "--output", "1", "--request", "0.0000001"], "more than 6 decimals"),
    ],
)
def test_a_price_that_is_none(bank: Shell, options: list[str], says: str) -> None:
    result = bank("admin", "prices", "set", "smollm2", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert bank.mesh.asked == []


# --- the books -------------------------------------------------------------------------------------------------------


def test_books_that_are_right(bank: Shell) -> None:
    result = bank("admin", "ledger", "verify")
    assert (result.exit_code, result.stdout) == (0, "The ledger is OK: 12 accounts, 345 entries, 2 open reservations.\n")


def test_one_of_a_thing_is_not_many(bank: Shell) -> None:
    bank.mesh.answer(ledger.verify_ledger, LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 1, 1, 1))
    assert bank("admin", "ledger", "verify").stdout == "The ledger is OK: 1 account, 1 entry, 1 open reservation.\n"


@pytest.mark.parametrize(
    "report",
    [
        LedgerReport(MicroCredits(-1), MicroCredits(0), MicroCredits(0), 0, 12, 345, 2, ("accounts differ",)),
        LedgerReport(MicroCredits(0), MicroCredits(1), MicroCredits(0), 0, 12, 345, 2),
        LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(1), 0, 12, 345, 2),
        LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 1, 12, 345, 2),
        LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 12, 345, 2, ("accounts differ",)),
    ],
)
def test_books_that_are_wrong_fail_the_command(bank: Shell, report: LedgerReport) -> None:
    bank.mesh.answer(ledger.verify_ledger, report)
    result = bank("admin", "ledger", "verify")
    assert (result.exit_code, "WRONG" in result.stdout) == (1, True)
    assert ("  accounts differ" in result.stdout) == bool(report.findings)
    result = bank("admin", "ledger", "verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["drift_micro"]) == (1, report.drift_micro)


def test_a_request_is_given_back(bank: Shell) -> None:
    result = bank("admin", "ledger", "revert", str(REQUEST), "--note", "sorry")
    assert result.stdout.startswith("Refunded. The account now:\ncredits left  112\n")
    assert bank.mesh.asked[0].request == ledger.RevertRequest(REQUEST, "sorry")
    assert bank("admin", "ledger", "revert", "nonsense").exit_code == 2


def test_an_amount_that_was_left_out_is_none() -> None:
    context = click.Context(click.Command("x"))
    assert credit_amounts.reader()(context, click.Option(["--budget"]), None) is None
