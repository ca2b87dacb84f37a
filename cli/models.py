"""`aicli models`: what can be asked."""

from typing import TYPE_CHECKING

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.gateway import ServedModel


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_obj
def models(here: Surroundings, /, *, as_json: bool) -> None:
    """List the models that are served now, the default first."""
    from cli import output
    from cli.output import Column
    from shared.api import gateway

    served = here.ask(gateway.list_models, gateway.ListModels(), key_needed=False)
    columns: list[Column[ServedModel]] = [
        Column("MODEL", lambda model: model.name),
        Column("WORKERS", lambda model: str(model.workers)),
        Column("CONTEXT", lambda model: f"{model.context_tokens} tokens"),
        Column("ALIASES", lambda model: output.names(model.aliases)),
    ]
    output.show_rows(served.models, columns, as_json=as_json, empty="No model is served: start a worker with `aicli worker`")
