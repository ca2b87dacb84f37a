"""`aicli webhooks`, as people read it."""

from datetime import UTC, datetime

from msgspec.structs import replace

from features.webhooks import contract as webhooks
from features.webhooks.contract import EventType, WebhookAttempt, WebhookEndpoint
from tests.cli.fake_mesh import Shell

ID = f"whe_{'a' * 26}"
AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
LAST = WebhookAttempt(f"evt_{'a' * 26}", 2, AT, None, "no answer in time", AT)
MINE = WebhookEndpoint(ID, "mine", "https://example.org/hook", (EventType.BATCH_COMPLETED,), AT, AT, "whsec_…wxyz")


def test_a_new_secret_is_the_only_output(shell: Shell) -> None:
    shell.mesh.answer(webhooks.create_webhook, replace(MINE, secret="whsec_abc"))
    created = shell("webhooks", "create", MINE.url)
    assert created.stdout == "whsec_abc\n"
    assert "not shown again" in created.stderr
    assert f"aicli webhooks test {ID}" in created.stderr


def test_an_endpoint_shows_its_state_and_last_result(shell: Shell) -> None:
    shell.mesh.answer(webhooks.get_webhook, replace(MINE, fails_since=AT, last=LAST))
    shown = shell("webhooks", "show", ID).stdout
    assert "state   failing since 2026-01-02 03:04" in shown
    assert f"last    no answer in time ({LAST.event_id}, attempt 2)" in shown
    shell.mesh.answer(webhooks.get_webhook, replace(MINE, disabled_why="it answered 410 Gone"))
    shown = shell("webhooks", "show", ID).stdout
    assert "disabled: it answered 410 Gone" in shown
    assert "no event yet" in shown


def test_the_list_has_the_last_result_of_each(shell: Shell) -> None:
    disabled = replace(MINE, disabled_why="all attempts of 5 days failed", last=replace(LAST, status=500, error=""))
    shell.mesh.answer(
        webhooks.list_webhooks, webhooks.WebhookEndpoints((replace(MINE, last=replace(LAST, status=204, error="")), disabled))
    )
    listed = shell("webhooks", "list", "-o", "wide").stdout
    assert "returned 204" in listed
    assert "all attempts of 5 days failed" in listed
    assert "batch.completed" in listed
    every = replace(MINE, event_types=tuple(event for event in EventType if event != EventType.RESPONSE_FAILED))
    shell.mesh.answer(webhooks.list_webhooks, webhooks.WebhookEndpoints((every,)))
    listed = shell("webhooks", "list", "-o", "wide").stdout
    assert "batch.*, response.cancelled, response.completed, response.incomplete, webhook.*" in listed


def test_a_test_says_how_the_server_answered(shell: Shell) -> None:
    shell.mesh.answer(webhooks.test_webhook, LAST)
    failed = shell("webhooks", "test", ID)
    assert (failed.stdout, failed.exit_code) == ("Failed: no answer in time.\n", 1)
    shell.mesh.answer(webhooks.test_webhook, replace(LAST, status=302, error=""))
    redirected = shell("webhooks", "test", ID)
    assert (redirected.stdout, redirected.exit_code) == ("Failed: returned 302.\n", 1)
    shell.mesh.answer(webhooks.test_webhook, replace(LAST, status=204, error=""))
    delivered = shell("webhooks", "test", ID)
    assert (delivered.stdout, delivered.exit_code) == ("Delivered: returned 204.\n", 0)
