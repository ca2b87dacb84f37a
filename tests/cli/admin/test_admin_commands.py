import json
from datetime import UTC, datetime, timedelta

from shared.api import accounts
from shared.api.accounts import StaleKey, StaleNode, StaleUser
from shared.types import NodeId
from tests.cli.fake_mesh import Shell

BEFORE = datetime(2020, 1, 2, tzinfo=UTC)
STALE = accounts.AccessReview(
    (StaleKey("k-1", "ci\x1b[31m", "bob", "live", BEFORE, None, "never used"),),
    (StaleUser("carol", "user", BEFORE, BEFORE, "not seen since"),),
    (StaleNode(NodeId("UABCDEFGHIJKLMNOP"), "", "worker", "", datetime.now(UTC) - timedelta(days=100), "not seen since"),),
)


def test_keys_users_and_nodes_are_listed_with_the_reason(shell: Shell) -> None:
    shell.mesh.answer(accounts.review_access, STALE)
    done = shell("admin", "access-review", "--days", "30")
    assert done.exit_code == 0
    for words in (["ci", "bob", "live", "never", "k-1"], ["carol", "user", "not seen since"], ["UABCDEFGHIJK", "the mesh", "100 d ago"]):
        assert any(all(word in line for word in words) for line in done.stdout.splitlines()), words
    # A key name cannot move the cursor.
    assert "\x1b[31m" not in done.stdout
    assert shell.mesh.calls[0].request == accounts.ReviewAccess(30)


def test_mesh_in_use_has_nothing_to_review(shell: Shell) -> None:
    shell.mesh.answer(accounts.review_access, accounts.AccessReview((), (), ()))
    done = shell("admin", "access-review")
    for what in ("keys", "accounts", "nodes"):
        assert f"No stale {what}." in done.output
    assert shell.mesh.calls[0].request == accounts.ReviewAccess(90)


def test_json_has_everything(shell: Shell) -> None:
    shell.mesh.answer(accounts.review_access, STALE)
    found = json.loads(shell("admin", "access-review", "--json").stdout)
    assert [row["why"] for part in ("keys", "users", "nodes") for row in found[part]] == ["never used", "not seen since", "not seen since"]
