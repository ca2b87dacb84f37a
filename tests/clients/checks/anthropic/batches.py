"""Message batches."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anthropic
from anthropic.types.messages import batch_create_params
from checklist import error_of

from checks.anthropic.client import checks, client, said

#: Lines wait for an idle machine.
END_SECONDS = 60
batches = client.messages.batches


def order(*says: str) -> Any:
    """Begin a batch whose answers say this; without a text, the request is refused."""
    given = [said(turn={"say": say}) if say else said() | {"messages": []} for say in says]
    return batches.create(requests=[{"custom_id": f"line-{number}", "params": params} for number, params in enumerate(given)])


def until(batch: Any, is_it: Callable[[Any], bool]) -> Any:
    ends_at = time.monotonic() + END_SECONDS
    while not is_it(found := batches.retrieve(batch.id)):
        assert time.monotonic() < ends_at, found
        time.sleep(0.05)
    return found


def ended(batch: Any) -> Any:
    return until(batch, lambda found: found.processing_status == "ended")


@checks("batches.create()", "batches.requests", "batches.retrieve()", "batches.results()", "batches.delete()")
def _() -> None:
    made = order("One.", "Two.", "")
    assert (made.type, made.processing_status, made.results_url) == ("message_batch", "in_progress", None)
    batch = ended(made)
    counts = batch.request_counts
    assert (counts.succeeded, counts.errored, counts.canceled, counts.processing) == (2, 1, 0, 0)
    results = {each.custom_id: each.result for each in batches.results(batch.id)}
    texts = {name: result.message.content[0].text for name, result in results.items() if result.type == "succeeded"}
    assert texts == {"line-0": "One.", "line-1": "Two."}
    assert results["line-2"].error.error.type == "invalid_request_error"
    assert batches.delete(batch.id).id == batch.id
    error_of(anthropic.NotFoundError, partial(batches.retrieve, batch.id))


@checks("batches.list()")
def _() -> None:
    first, second = (order("Hi.") for _ in range(2))
    listed = iter(batches.list(limit=1))
    assert [next(listed).id for _ in range(2)] == [second.id, first.id]


@checks("batches.user_profile_id", "batches.workspace_id")
def _() -> None:
    # Headers, which have no effect.
    given = [{"custom_id": "1", "params": said()}]
    assert batches.create(requests=given, user_profile_id="profile_1", workspace_id="wrkspc_1").processing_status == "in_progress"


@checks("batches.cancel()")
def _() -> None:
    made = order(*["Hi."] * 500)
    # While it is validated, it has no requests.
    until(made, lambda found: found.request_counts.processing > 0)
    assert batches.cancel(made.id).processing_status in {"canceling", "ended"}
    counts = ended(made).request_counts
    assert counts.canceled > 0
    assert counts.canceled + counts.succeeded == 500


checks.ensure_named("batches", batch_create_params.BatchCreateParams.__annotations__)
