import json
from datetime import timedelta

import pytest

from shared.api import business
from shared.types import MicroCredits
from tests.cli.fake_mesh import Shell


def report_of(total: business.BusinessSum) -> business.BusinessReport:
    return business.BusinessReport(total, (), more=False, given_back_micro=MicroCredits(0), active=business.ActiveUsers(0, 0, 0, 0))


def test_a_plan_shows_where_machines_of_your_own_cost_less(shell: Shell) -> None:
    found = shell("cost", "plan")
    assert found.exit_code == 0
    assert "16,544         1         1,227.20  1,227.20" in found.stdout
    assert "Break-even: 16,544 conversations a month." in found.stdout
    dear = shell("cost", "plan", "--machine-hour", "2.86")
    assert "Machines of your own never cost less than the API." in dear.stdout


def test_a_plan_is_data_for_programs(shell: Shell) -> None:
    found = json.loads(shell("cost", "plan", "--conversations", "50000", "-o", "json").stdout)
    assert (found["capacity"], found["break_even"], found["stays_cheaper_from"]) == (26_280, 16_544, 16_544)
    assert [(row["conversations"], row["machines"]) for row in found["rows"]] == [(16_544, 1), (50_000, 2)]


def test_a_plan_takes_the_conversations_of_the_mesh(shell: Shell) -> None:
    total = business.BusinessSum(prompt_tokens=80_000, completion_tokens=30_000, conversations=10)
    shell.mesh.answer(business.get_business_report, report_of(total))
    found = json.loads(shell("cost", "plan", "--from-mesh", "3d", "-o", "json").stdout)
    assert [row["conversations"] for row in found["rows"]] == [100, 16_544], "10 in three days"
    (asked,) = [call.request for call in shell.mesh.calls]
    assert asked.until - asked.since == timedelta(days=3)
    shell.mesh.answer(business.get_business_report, report_of(business.BusinessSum()))
    assert "nobody has asked this mesh since" in shell("cost", "plan", "--from-mesh", "3d").stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--kwh", "x", "is not a number from 0"),
        ("--kwh", "-1", "is not a number from 0"),
        ("--kwh", "NaN", "is not a number from 0"),
        ("--machine-hour", "1e30", "is not a number from 0"),
        ("--tokens-per-second", "0", "must be above 0"),
        ("--utilization", "1.5", "must be at most 1"),
        ("--output-tokens", "1e9", "less than one conversation a month"),
        ("--from-mesh", "soon", "is not a valid time"),
    ],
)
def test_a_wrong_number_is_refused(shell: Shell, option: str, value: str, said: str) -> None:
    found = shell("cost", "plan", option, value)
    assert found.exit_code == 2
    assert said in found.stderr


def test_the_documents_tables_are_printed_beside_the_source(shell: Shell) -> None:
    found = shell("cost", "seeds")
    assert "API costs at the break-even                1,200        1,213     13" in found.stdout
