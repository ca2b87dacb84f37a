"""Tickets of replicas, which the operator's list includes."""

from pathlib import Path

import pytest

from shared.types import MeshName
from stack import secret_files, stack_home
from stack.servers import replica_tickets


@pytest.mark.parametrize(("days_left", "is_replaced"), [(134, False), (133, True)])
def test_a_ticket_is_replaced_when_two_thirds_of_its_time_have_passed(tmp_path: Path, days_left: int, *, is_replaced: bool) -> None:
    home = stack_home.locate({"AIMESH_HOME": str(tmp_path / "home")})
    stack_home.ensure_folders(home)
    secret_files.ensure(home)
    replica_tickets.ensure(home, MeshName("test"), ["nats://127.0.0.1:4222"], 2, (), days=days_left)
    made = replica_tickets.ensure(home, MeshName("test"), ["nats://127.0.0.1:4222"], 2, (), days=400)
    assert set(made) == (set(replica_tickets.ROLES) if is_replaced else set())
