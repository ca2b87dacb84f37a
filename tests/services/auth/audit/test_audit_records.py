"""The rows that auth builds for its own acts."""

from services.auth import audit_records


def test_a_plan_is_named_without_its_version() -> None:
    act = audit_records.of_mesh("organisation.tier", None, before="free@1", after="pro@3")
    assert act.details == {"before": "free", "after": "pro"}
    assert audit_records.of_mesh("user.role", None, before="a@1").details == {"before": "a@1"}
