"""`aicli rerank`: rank texts by their relevance to a query."""

from typing import TYPE_CHECKING

import click
import msgspec

from cli import options
from cli.ask.infer import model_option, read_text
from cli.cli_context import CliContext
from cli.output import print_format, printing
from cli.output.printing import TableColumn
from shared import api
from shared.types import ModelName

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.embedding import Ranking

#: A worker may be loading its model.
_DEADLINE_SECONDS = 600


class RankedText(msgspec.Struct, frozen=True):
    #: Among the texts given, from 0.
    index: int
    relevance_score: float
    #: The file, or the line.
    name: str


@click.command()
@click.argument("query")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@model_option
@click.option("--lines", is_flag=True, help="Rank each line of the files, instead of each file.")
@options.whole_number("--top", lambda: api.embedding.RankingRequest, "top_n", metavar="N", help="Show only the N most relevant texts.")
@print_format.output_options("Print a JSON list: index, relevance_score, name.")
@click.pass_obj
def rerank(
    here: CliContext, /, query: str, files: tuple[str, ...], *, model: str | None, lines: bool, top: int | None, as_json: bool
) -> None:
    """Rank text files by their relevance to a query, the most relevant first. It needs a reranking model.

    \b
    aicli rerank -m bge-reranker "how do I renew a certificate" docs/*.md
    grep -rh timeout . | aicli rerank --lines --top 5 "why does the upload stop" -


    A score is between 0 and 1.
    """
    from shared.api import embedding

    texts: list[tuple[str, str]] = []
    for name in files:
        with click.open_file(name, "rb") as file:
            whole = read_text(file, name)
        texts += [(line, line) for line in whole.splitlines() if line.strip()] if lines else [(name, whole)]
    wanted = None if model is None else ModelName(model)
    request = embedding.RequestRanking(embedding.RankingRequest(query, tuple(text for _, text in texts), wanted, top))

    async def ask(connection: "CliConnection") -> "Ranking":
        async with connection.stream(embedding.request_ranking, request, deadline_seconds=_DEADLINE_SECONDS) as answer:
            async for notice in answer:
                printing.note(printing.printable(notice.waiting))
            return answer.end

    results = here.run(ask).results
    rows = [RankedText(found.index, found.relevance_score, texts[found.index][0]) for found in results]
    columns: list[TableColumn[RankedText]] = [
        TableColumn("SCORE", lambda row: f"{row.relevance_score:.4f}"),
        TableColumn("TEXT", lambda row: row.name, wraps=True),
    ]
    printing.show_rows(rows, columns, as_json=as_json, empty="No texts.")
