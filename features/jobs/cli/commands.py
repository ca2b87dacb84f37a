"""`aicli batch`: run the requests of a file when the mesh has time, and get all answers in one file."""

from collections.abc import Awaitable, Callable
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

import click
import msgspec

from cli import value_completion
from cli.cli_context import CliContext
from cli.output import output_file, print_format, printing, watching
from cli.output.exit_codes import ExitCode
from cli.output.print_format import PrintFormat
from cli.output.progress_line import ProgressLine
from cli.value_completion import Candidate
from features.files.cli import commands as files
from features.files.feature import MAX_BATCH_BYTES
from features.jobs import contract, lists
from features.jobs.cli import batch_runs
from features.jobs.cli.batch_runs import BatchClient, BatchOrder
from features.jobs.contract import BatchEndpoint, BatchWindow, JobFacts, JobKind, JobState
from shared import errors

if TYPE_CHECKING:
    from cli.connection import CliConnection

#: Returns the batch that a command is about.
Begin: TypeAlias = Callable[[BatchClient], Awaitable[JobFacts]]

_ENDPOINTS = get_args(BatchEndpoint)
#: Of the first line, which has up to 1 MiB.
_FIRST_BYTES = 2 << 20
_SHOWN_ERRORS = 10


async def _batches(connection: "CliConnection") -> list[Candidate]:
    listed = (await connection.call(contract.list_jobs, contract.ListJobs(JobKind.BATCH))).jobs
    return [(job.id, job.metadata.get(lists.FILE_NAME, job.state)) for job in listed]


_id = click.argument("batch_id", metavar="ID", shell_complete=value_completion.completer("batches", _batches))
_json = print_format.output_options("Print a JSON object.")
_output = click.option(
    "-o",
    "--output",
    "target",
    metavar="OUT",
    type=click.Path(dir_okay=False),
    help="File for the answers, written at once. Default: stdout.",
)
_window = click.option(
    "--window", type=click.Choice(get_args(BatchWindow)), default="24h", show_default=True, help="Time that it may take."
)


class _FirstLine(msgspec.Struct):
    url: BatchEndpoint


@click.group()
def batch() -> None:
    """Run the requests of a file when the mesh has time, at a lower price."""


@batch.command()
@click.argument("source", metavar="FILE")
@_output
@click.option("--endpoint", type=click.Choice(_ENDPOINTS), help="What all lines call. Default: the url of the first one.")
@_window
@click.option("--again", is_flag=True, help="Start a new batch, although FILE has one.")
@click.option("--detach", is_flag=True, help="Print the ID, and don't wait for the end.")
@click.option(
    "--json", is_flag=True, expose_value=False, callback=print_format.choose(PrintFormat.JSON), help="Print the batch as a JSON object."
)
@click.pass_obj
def run(
    here: CliContext,
    /,
    source: str,
    *,
    target: str | None,
    endpoint: BatchEndpoint | None,
    window: BatchWindow,
    again: bool,
    detach: bool,
) -> None:
    """Run the requests of FILE, one JSON object a line as for OpenAI's batches, and write their answers in the same order.

    Ctrl-C stops only the waiting. The same command attaches to the same batch again, from any machine, for 24 hours after its end. Exits
    with 7 if some lines have no answer.
    """
    file = here.folder / Path(source).expanduser()
    if not file.is_file():
        raise errors.BadRequest(f"{source} is missing, or no regular file")
    if (size := file.stat().st_size) > MAX_BATCH_BYTES:
        raise errors.TooLarge(f"{source} has {size} bytes, and a batch at most {MAX_BATCH_BYTES}", hint="split it")
    files.refuse_too_large(here, source, size)
    with file.open("rb") as opened:
        chosen = endpoint or _first_endpoint(opened.read(_FIRST_BYTES), source)
        opened.seek(0)
        digest = file_digest(opened, "sha256").hexdigest()
    order = BatchOrder(file.name, chosen, window, ("file_sha256", digest))

    async def begin(client: BatchClient) -> JobFacts:
        found = await client.find(order)
        if found is None or again or not batch_runs.is_current(found):
            return await client.start(order, file.read_bytes(), found)
        printing.note(f"attached to {found.id}, which has the same lines; --again starts another")
        return found

    if detach:
        _show_id(_begin(here, begin))
    else:
        _follow(here, begin, target)


@batch.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List your batches, newest first."""
    found = here.call(contract.list_jobs, contract.ListJobs(JobKind.BATCH))
    printing.show_list(found.jobs, lists.JOBS, as_json=as_json, create="Start one: aicli batch run FILE")
    if found.has_more:
        printing.note(f"these are the newest {len(found.jobs)} batches")


@batch.command()
@_id
@_json
@click.pass_obj
def show(here: CliContext, /, batch_id: str, *, as_json: bool) -> None:
    """Show a batch, and the lines of its file that are refused."""
    job = here.call(contract.get_job, contract.GetJob(batch_id))
    rows = {
        "state": batch_runs.describe(job),
        "model": job.model,
        "endpoint": job.endpoint,
        "tokens": f"{job.input_tokens:,} in ({job.cached_tokens:,} cached), {job.output_tokens:,} out",
        "created": printing.moment(job.created_at),
        "ended" if job.ended_at else "expires": printing.moment(job.ended_at or job.expires_at),
        "input": job.input_file,
        "output": job.output_file,
        "errors": job.error_file,
        **{name: text for name, text in job.metadata.items() if name not in ("state", "model")},
    }
    lines = [f"{name:<12}{text}" for name, text in rows.items() if text]
    lines += [lists.refusal(job, number) for number in range(len(job.errors))]
    printing.show_message(job, "\n".join(map(printing.one_line, lines)), as_json=as_json)


@batch.command()
@_id
@_json
@click.pass_obj
def cancel(here: CliContext, /, batch_id: str, *, as_json: bool) -> None:
    """Stop a batch: no other line begins. What has an answer keeps it, and is paid."""
    job = here.call(contract.cancel_job, contract.CancelJob(batch_id))
    printing.show_message(job, printing.one_line(f"{job.id}: {batch_runs.describe(job)}"), as_json=as_json)


@batch.command()
@_id
@_output
@click.pass_obj
def results(here: CliContext, /, batch_id: str, *, target: str | None) -> None:
    """Wait for the end of a batch, and write its answers and errors in the order of its lines."""
    _follow(here, lambda client: client.get(batch_id), target)


@batch.command()
@_id
@_window
@_json
@click.pass_obj
def retry(here: CliContext, /, batch_id: str, *, window: BatchWindow, as_json: bool) -> None:
    """Start a batch of those lines of another one that have no answer, and print its ID."""

    async def begin(client: BatchClient) -> JobFacts:
        failed = await client.get(batch_id)
        endpoint: BatchEndpoint = msgspec.convert(failed.endpoint, BatchEndpoint)
        order = BatchOrder(failed.metadata.get(lists.FILE_NAME, failed.id), endpoint, window, ("retry_of", failed.id))
        found = await client.find(order)
        if found is not None and batch_runs.is_current(found):
            return found
        return await client.start(order, await client.failed_lines(failed), found)

    _show_id(_begin(here, begin))


def _begin(here: CliContext, begin: Begin) -> JobFacts:
    async def work(connection: "CliConnection") -> JobFacts:
        return await begin(BatchClient(connection, ProgressLine()))

    return here.run(work)


def _show_id(job: JobFacts) -> None:
    printing.show_message(job, job.id, as_json=print_format.current().is_data)
    printing.note(f"wait for its answers: aicli batch results {job.id} -o OUT")


def _follow(here: CliContext, begin: Begin, target: str | None) -> None:
    """Wait for the end of a batch, and write its results. Exits with what became of it."""
    place = None if target in (None, "-") else here.folder / Path(str(target)).expanduser()
    if place is not None and not place.parent.is_dir():
        raise errors.BadRequest(f"there is no folder {place.parent}")
    as_json, begun, show = print_format.current().is_data, list[JobFacts](), ProgressLine()

    async def work(connection: "CliConnection") -> JobFacts:
        client = BatchClient(connection, show)
        begun.append(await begin(client))
        job = await client.follow(begun[0])
        if job.state is not JobState.FAILED and not (as_json and place is None):
            with output_file.open_(place) as output:
                await client.write_results(job, output)
        return job

    try:
        job = here.run(work)
    except KeyboardInterrupt:
        if not begun:
            raise
        show.close()
        found, to = begun[0].id, f" -o {target}" if target else ""
        printing.note(f"{found} still runs. To wait again: aicli batch results {found}{to}. To stop it: aicli batch cancel {found}.")
        click.get_current_context().exit(ExitCode.INTERRUPTED)
    if as_json:
        printing.show_message(job, "", as_json=True)
    _tell_end(job, place)


def _tell_end(job: JobFacts, place: Path | None) -> None:
    """Raises BadRequest for a refused file. Exits with 7 if not every line has an answer."""
    if job.state is JobState.FAILED:
        for number in range(min(len(job.errors), _SHOWN_ERRORS)):
            printing.note(printing.one_line(lists.refusal(job, number)))
        raise errors.BadRequest(f"{job.id} ran no lines: its file is refused", hint=f"see `aicli batch show {job.id}`")
    if place is not None:
        printing.note(f"wrote {place}")
    if job.done < job.total or not job.total:
        printing.note(f"{printing.counted(job.total - job.done, 'line')} without an answer. To run them again: aicli batch retry {job.id}")
        click.get_current_context().exit(ExitCode.INCOMPLETE)


def _first_endpoint(content: bytes, name: str) -> BatchEndpoint:
    """Return what the first line calls. Raises BadRequest."""
    first = next((line for line in content.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()), b"")
    try:
        return msgspec.json.decode(first, type=_FirstLine).url
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = f'a line is {{"custom_id": "1", "method": "POST", "url": URL, "body": {{…}}}}, and URL one of {", ".join(_ENDPOINTS)}'
        raise errors.BadRequest(f"the first line of {name} is no request of a batch: {error}", hint=hint) from error
