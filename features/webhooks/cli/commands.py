"""`aicli webhooks`: servers that get events of your account or organization."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.exit_codes import ExitCode
from features.webhooks import contract
from features.webhooks.contract import EventType

if TYPE_CHECKING:
    from features.webhooks.contract import WebhookEndpoint

_json = print_format.output_options("Print a JSON object.")
_TYPES = tuple(event.value for event in EventType if event is not EventType.TEST)
#: The server may take 15 s.
_TEST_SECONDS = 20.0


def _event_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--event", "events", multiple=True, type=click.Choice(_TYPES), help=text)


@click.group()
def webhooks() -> None:
    """Send signed events to your servers when jobs end."""


@webhooks.command()
@click.argument("url")
@click.option("--name", help="What it is for. Default: the URL's host.")
@_event_option("Send only this type of event. Can be repeated. Default: all.")
@_json
@click.pass_obj
def create(here: CliContext, /, url: str, *, name: str | None, events: tuple[str, ...], as_json: bool) -> None:
    """Create an endpoint for URL and print its secret. It is shown only once."""
    from urllib.parse import urlsplit

    named = name or urlsplit(url).hostname or url[:100]
    made = here.call(contract.create_webhook, contract.CreateWebhook(named, url, _types(events or _TYPES)))
    _show_secret(made, as_json=as_json)


@webhooks.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List your endpoints with the last result of each."""
    from features.webhooks.lists import WEBHOOKS

    found = here.call(contract.list_webhooks, contract.ListWebhooks()).endpoints
    printing.show_list(found, WEBHOOKS, as_json=as_json, create="Create one: aicli webhooks create URL")


@webhooks.command()
@click.argument("endpoint", metavar="ID")
@_json
@click.pass_obj
def show(here: CliContext, /, endpoint: str, *, as_json: bool) -> None:
    """Show an endpoint and its last result."""
    from features.webhooks.lists import result, state

    found = here.call(contract.get_webhook, contract.GetWebhook(endpoint))
    why = f": {found.disabled_why}" if found.disabled_why else f" since {found.fails_since:%Y-%m-%d %H:%M}" if found.fails_since else ""
    rows = {
        "name": found.name,
        "url": found.url,
        "events": ", ".join(found.event_types),
        "secret": found.secret_hint,
        "state": state(found)[0].lower() + why,
        "last": f"{result(found.last)} ({found.last.event_id}, attempt {found.last.attempt})" if found.last else "no event yet",
    }
    printing.show_message(found, "\n".join(f"{key:<8}{printing.printable(text)}" for key, text in rows.items()), as_json=as_json)


@webhooks.command()
@click.argument("endpoint", metavar="ID")
@click.option("--name", help="New name.")
@click.option("--url", help="New URL.")
@_event_option("Send only this type of event from now on. Can be repeated.")
@_json
@click.pass_obj
def update(here: CliContext, /, endpoint: str, *, name: str | None, url: str | None, events: tuple[str, ...], as_json: bool) -> None:
    """Change an endpoint, and enable it if it is disabled."""
    request = contract.ChangeWebhook(endpoint, name, url, _types(events) or None)
    found = here.call(contract.change_webhook, request)
    printing.show_message(found, f"{found.id} is enabled.", as_json=as_json)


@webhooks.command("rotate-secret")
@click.argument("endpoint", metavar="ID")
@click.option("--at-once", is_flag=True, help="The former secret signs nothing from now on: it has leaked.")
@_json
@click.pass_obj
def rotate_secret(here: CliContext, /, endpoint: str, *, at_once: bool, as_json: bool) -> None:
    """Create a new secret for an endpoint and print it. The former one also signs for 24 hours."""
    made = here.call(contract.rotate_webhook_secret, contract.RotateWebhookSecret(endpoint, at_once=at_once))
    _show_secret(made, as_json=as_json)


@webhooks.command()
@click.argument("endpoint", metavar="ID")
@click.pass_obj
def delete(here: CliContext, /, endpoint: str) -> None:
    """Delete an endpoint, and the events on their way to it."""
    here.call(contract.delete_webhook, contract.DeleteWebhook(endpoint))
    click.echo(f"{printing.printable(endpoint)} is deleted.")


@webhooks.command()
@click.argument("endpoint", metavar="ID")
@_json
@click.pass_obj
@click.pass_context
def test(context: click.Context, here: CliContext, /, endpoint: str, *, as_json: bool) -> None:
    """Send an endpoint the event webhook.test, and print how its server answered. Exits with 1 unless it took the event, with 2xx."""
    from features.webhooks.lists import result

    request = contract.TestWebhook(endpoint)
    found = here.run(lambda connection: connection.call(contract.test_webhook, request, deadline_seconds=_TEST_SECONDS))
    printing.show_message(found, f"{'Delivered' if found.is_delivered else 'Failed'}: {result(found)}.", as_json=as_json)
    if not found.is_delivered:
        context.exit(ExitCode.FAILED)


def _types(events: tuple[str, ...]) -> tuple[EventType, ...]:
    return tuple(map(EventType, events))


def _show_secret(made: "WebhookEndpoint", *, as_json: bool) -> None:
    if as_json:
        printing.show_message(made, "", as_json=True)
        return
    click.echo(made.secret)
    printing.note(f"Save the secret of {made.id} now: it is not shown again. Try it: aicli webhooks test {made.id}")
