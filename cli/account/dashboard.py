"""`aicli dashboard`: open the dashboard in a browser, signed in without a password."""

import html
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared import api

#: The page of the web service that redeems a login link.
LOGIN_PATH = "/login-link"


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print the link instead of opening a browser.")
@print_format.output_options('Print {"url": …, "expires_in": …} instead of opening a browser.')
@click.pass_obj
def dashboard(here: CliContext, /, *, only_print: bool, as_json: bool) -> None:
    """Open the web dashboard in a browser, already signed in.

    The link works once and expires after a minute.
    """
    from urllib.parse import quote

    web = here.profile(key_needed=True).web_url.rstrip("/")
    link = here.call(api.auth.create_login_link, api.auth.CreateLoginLink())
    url = f"{web}{LOGIN_PATH}?token={quote(link.token, safe='')}"
    if as_json:
        printing.show_json({"url": url, "expires_in": link.expires_in})
        return
    click.echo(url)
    printing.note(f"The link works once, within {link.expires_in} s.")
    if not only_print:
        open_browser(url, here.environment)


def open_browser(url: str, environment: Mapping[str, str]) -> None:
    """Open the link, if there is a screen. It is written to a file that only this user can read: as an argument of the browser, the code
    in it would show up in `ps`."""
    import platform
    import webbrowser

    if not (environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY") or platform.system() in ("Darwin", "Windows")):
        return
    folder = environment.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    handle, name = tempfile.mkstemp(dir=folder, prefix="aicli-", suffix=".html")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(url)}"><title>aimesh</title>')
    # The file stays, because the browser may open it late; the code in it expires within minutes.
    webbrowser.open(Path(name).as_uri())
