"""A machine with several worker processes is one row."""

from datetime import UTC, datetime

import msgspec

from shared.api.gateway import NodeRow
from shared.identity.certificates import MACHINE_LABEL
from shared.lists import nodes
from shared.types import ModelName, NodeId, Role


def row(node: str, *models: str, machine: str = "", role: Role = Role.WORKER) -> NodeRow:
    return NodeRow(
        id=NodeId(node),
        role=role,
        service="worker",
        path="direct",
        alive=True,
        usable=True,
        why_not="",
        models=tuple(map(ModelName, models)),
        since=datetime(2026, 12, 1, tzinfo=UTC),
        version="0.4.0",
        running=1,
        queued=2,
        slots=4,
        labels={MACHINE_LABEL: machine} if machine else {},
    )


def test_workers_of_a_machine_are_one_row() -> None:
    found = nodes.machines([row("U1", "a"), row("U3", "b", "a", machine="U1"), row("U2", "c"), row("U4", "d", machine="U1")])
    assert [(each.id, each.models, each.running, each.queued, each.slots) for each in found] == [
        ("U1", ("a", "b", "d"), 3, 6, 12),
        ("U2", ("c",), 1, 2, 4),
    ]


def test_one_that_is_in_trouble_is_named_in_its_row() -> None:
    away = msgspec.structs.replace(row("U2", machine="U1"), usable=False, why_not="it has been silent")
    (found,) = nodes.machines([row("U1"), away])
    assert found.trouble == "it has been silent"


def test_without_the_first_one_others_have_rows_of_their_own() -> None:
    rows = [row("U2", machine="U1"), row("U3", machine="U1")]
    assert nodes.machines(rows) == tuple(rows)


def test_nobody_comes_into_the_row_of_another_role() -> None:
    rows = [row("U1", role=Role.GATEWAY), row("U2", machine="U1")]
    assert {each.id for each in nodes.machines(rows)} == {"U1", "U2"}


def test_news_for_the_owner_is_shown_and_is_no_trouble() -> None:
    told = msgspec.structs.replace(row("A"), notice="Not shared yet: LM Studio")
    assert nodes.reason(told) == "Not shared yet: LM Studio"
    assert nodes.state(told) == nodes.state(row("A"))
