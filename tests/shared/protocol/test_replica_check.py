"""A replica that lacks what a running one has does not start, and says which command writes it."""

from datetime import UTC, datetime

import msgspec
import pytest

from shared import errors
from shared.node import member
from shared.node.settings import NodeSettings
from shared.protocol.directory import Announcement
from shared.protocol.replica_check import ReplicaCheck, describe_features
from shared.types import NodeId, Role

OTHER = Announcement(Role.METRICS, NodeId("UOTHER"), "1", datetime(2026, 1, 1, tzinfo=UTC), settings=("DATABASE_URL", "DHT_BOOTSTRAP"))


def test_a_replica_without_the_database_of_a_running_one_is_refused() -> None:
    lacking = ReplicaCheck(Role.METRICS, ("DHT_BOOTSTRAP",), ("DATABASE_URL", "SMTP_URL"))
    with pytest.raises(errors.BadSettings, match=r"lacks DATABASE_URL, which UOTHER has") as refused:
        lacking.refuse_incomplete([OTHER])
    assert "`aicli stack replica metrics FOLDER`" in str(refused.value.hint)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"settings": ()}, id="the other one has it neither"),
        pytest.param({"not_ready": "starting"}, id="the other one starts, too"),
        pytest.param({"draining": True}, id="the other one stops"),
        pytest.param({"leaving": True}, id="the other one has stopped"),
    ],
)
def test_it_starts_where_no_running_replica_has_more(other: dict[str, object]) -> None:
    ReplicaCheck(Role.METRICS, (), ("DATABASE_URL",)).refuse_incomplete([msgspec.structs.replace(OTHER, **other)])


@pytest.mark.parametrize(
    ("role", "check", "absent"),
    [(Role.GATEWAY, "on", ("DHT_BOOTSTRAP",)), (Role.GATEWAY, "off", ()), (Role.WORKER, "on", ()), (Role.WEB, "on", ())],
)
def test_the_stacks_own_services_and_workers_follow_no_replica(role: Role, check: str, absent: tuple[str, ...], tmp_path: object) -> None:
    settings = NodeSettings(node_key_file=tmp_path, replica_check=check)  # type: ignore[arg-type]
    assert member._replica_check(settings, role) == ReplicaCheck(role, (), absent)


def test_it_names_who_lacks_which_feature() -> None:
    gateway = msgspec.structs.replace(OTHER, role=Role.GATEWAY, node=NodeId("UGATEWAY"), features=("a", "b"))
    worker = msgspec.structs.replace(OTHER, role=Role.WORKER, node=NodeId("UOLD"))
    stopping = msgspec.structs.replace(OTHER, node=NodeId("USTOPS"), draining=True)
    assert describe_features(("a", "b"), [gateway, worker, stopping]) == ""
    assert describe_features(("b",), [gateway, OTHER]) == "this one lacks a; metrics UOTHER lacks a, b"
