"""`aicli models check`: run the scripted tool calls on a model, and let the mesh keep how many were right."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import msgspec

from cli import value_completion
from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared import errors

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from features.model_check.cli.scripts import Script
    from features.model_check.cli.vendor_apis import Api

#: For one answer.
_SECONDS = 120.0
#: They say nothing about a model: the key, the budget, the rights and the limits of the caller, and a name that nobody serves.
_CALLERS = (errors.NotAuthenticated, errors.BudgetExhausted, errors.NotAllowed, errors.NotFound, errors.Limited)
_BY_STATUS = {kind.status: kind for kind in _CALLERS}


class CheckedCall(msgspec.Struct, frozen=True):
    name: str
    api: str
    is_streamed: bool
    #: Why it is wrong; empty if it is right.
    fault: str


class CheckedModel(msgspec.Struct, frozen=True):
    model: str
    right_calls: int
    of: int
    #: Whether `aicli models` shows it.
    is_recorded: bool
    calls: tuple[CheckedCall, ...]


@click.command()
@click.argument("model", shell_complete=value_completion.models)
@click.option("-v", "--verbose", is_flag=True, help="Show each wrong answer and why it is wrong.")
@print_format.output_options("Print the result with all calls as a JSON object.")
@click.pass_obj
def check(here: CliContext, /, model: str, *, verbose: bool, as_json: bool) -> None:
    """Check how well a model calls tools.

    It gets 50 scripted requests over the APIs chat, responses and messages, half of them streamed. They cost and count as any others. An
    administrator's result is kept, and `aicli models` shows it until the model's file changes; others only see theirs.
    """
    checked = here.run(lambda connection: _check(connection, model))
    if as_json:
        printing.show_json(printing.plain(checked))
        return
    for call in checked.calls if verbose else ():
        if call.fault:
            click.echo(printing.printable(f"{call.name} ({call.api}{', streamed' if call.is_streamed else ''}): {call.fault}"))
    click.echo(printing.printable(f"{checked.model}: tools {checked.right_calls} of {checked.of}"))


async def _check(connection: "CliConnection", model: str) -> CheckedModel:
    """Raises what keeps the caller from asking at all."""
    from cli.output.progress_line import ProgressLine
    from features.model_check import contract
    from features.model_check.cli.scripts import SCRIPTS
    from features.model_check.cli.vendor_apis import Api

    found = None
    with _noting_refusals():
        found = await connection.call(contract.find_model_builds, contract.FindModelBuilds(model))
    progress, calls, apis = ProgressLine(), list[CheckedCall](), [*Api]
    try:
        for number, script in enumerate(SCRIPTS):
            used, is_streamed = apis[number % len(apis)], number % 2 == 1
            progress.write(f"{number} of {len(SCRIPTS)} calls, {sum(not call.fault for call in calls)} right", "checking")
            fault = await _find_fault(connection, used, model, script, is_streamed=is_streamed)
            calls.append(CheckedCall(script.name, used.value, is_streamed, fault))
    finally:
        progress.close()
    right = sum(not call.fault for call in calls)
    with _noting_refusals():
        if found is not None:
            await connection.call(contract.record_model_check, contract.RecordModelCheck(found.model, found.builds, right))
            return CheckedModel(model, right, len(SCRIPTS), is_recorded=True, calls=tuple(calls))
    return CheckedModel(model, right, len(SCRIPTS), is_recorded=False, calls=tuple(calls))


@contextmanager
def _noting_refusals() -> Iterator[None]:
    """Tell why a result is not recorded."""
    try:
        yield
    except errors.NotAllowed:
        printing.note("The result is only shown: the mesh keeps those of administrators.")
    except errors.AimeshError as error:
        printing.note(f"The result is only shown: {error.message}.")


async def _find_fault(connection: "CliConnection", used: "Api", model: str, script: "Script", *, is_streamed: bool) -> str:
    """Return why an answer is wrong, or that there is none; empty if it is right. Raises those of ``_CALLERS``."""
    from features.model_check.cli import judge, vendor_apis
    from shared.api.gateway import HttpRequest

    # A repeated check must not read the answers of the last one.
    headers = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
    body = vendor_apis.write(used, model, script, is_streamed=is_streamed)
    request, status, answer = HttpRequest("POST", vendor_apis.PATHS[used], headers=headers, body=body), 0, bytearray()
    try:
        async with asyncio.timeout(_SECONDS), connection.http(request) as parts:
            async for part in parts:
                status = status or part.status
                answer += part.body
        if status >= 400:
            why = vendor_apis.read_refusal(bytes(answer)) or f"status {status}"
            raise _BY_STATUS.get(status, errors.PeerError)(why)
        return judge.find_fault(script, vendor_apis.read(used, bytes(answer), is_streamed=is_streamed))
    except _CALLERS:
        raise
    except TimeoutError:
        return f"no answer within {_SECONDS:.0f} s"
    except errors.AimeshError as error:
        return f"no answer: {error.message}"
    except ValueError as error:
        return f"no answer that can be read: {error}"
