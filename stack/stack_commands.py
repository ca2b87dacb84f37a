"""The commands of `aicli stack`. Each imports what it needs when it runs, so that other commands start fast."""

import asyncio
import hashlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import errors, features
from shared.types import Role
from stack import stack_home
from stack.servers import replica_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.cli_context import CliContext
    from shared.stores.migrations import SchemaStatus
    from stack.settings import StackSettings

#: Time to move a ticket to its replica.
_REPLICA_TICKET_SECONDS = 24 * 3600


@click.group()
def stack() -> None:
    """Run the whole platform on this machine: five services, PostgreSQL, Valkey and NATS.

    All data is in AIMESH_HOME (default: .aimesh in the checkout). Settings come from the environment and are saved; see
    docs/reference/settings.md.
    """


for _module in features.modules("stack.commands"):
    for _command in _module.COMMANDS:
        stack.add_command(_command)


def _print(text: str) -> None:
    click.echo(f"  {text}", err=True)


@stack.command()
@click.option("--tickets", is_flag=True, help="Also create a ticket for replicas of each service, in secrets/tickets.")
@click.option("--active", "active_most", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Most replicas of a service.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Network that services log in from. Default: private networks.")
@click.option("--days", type=click.IntRange(1, 400), default=90, show_default=True, help="Lifetime of new tickets, in days.")
def init(*, tickets: bool, active_most: int, networks: tuple[str, ...], days: int) -> None:
    """Create secrets, node keys and server configuration. Starts nothing and overwrites nothing.

    Repeat --tickets to replace tickets that have used two thirds of their lifetime.
    """
    from stack import initialization, stack_plan
    from stack.servers import replica_tickets

    home = stack_home.locate(os.environ)
    initialized = initialization.ensure(home, os.environ, Path.cwd())
    made, settings = initialized.made, initialized.settings
    if tickets:
        urls = (initialized.recorded.get("PUBLIC_NATS_URL") or stack_plan.nats_url(settings)).split(",")
        roles = replica_tickets.ensure(home, settings.mesh, urls, active_most, networks or replica_tickets.PRIVATE_NETWORKS, days=days)
        click.echo(f"{replica_tickets.folder_of(home)}: " + (f"created tickets for {', '.join(roles)}" if roles else "nothing to create"))
    what = f"created {printing.counted(len(made), 'secret or node key', 'secrets and node keys')}" if made else "nothing to create"
    click.echo(f"{home.root}: {what}")


@stack.command("kubernetes-secrets")
@click.argument("name")
@click.option("--active", "active_most", type=click.IntRange(1, 100_000), default=40, show_default=True, help="Most replicas of a service.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Network of the pods. Default: private networks.")
@click.option("--days", type=click.IntRange(1, 400), default=365, show_default=True, help="Lifetime of new tickets, in days.")
@click.option("--namespace", "given", multiple=True, metavar="GROUP=NAME", help="Namespace of gateway, models, observability or infra.")
@click.option("--nats", required=True, help="URLs of the NATS servers, as the chart's NATS_URL.")
@click.option("--database", default="", help="URL of PostgreSQL with {role} and {password}; without it, your own server.")
@click.option("--database-read", default="", help="URL of its replicas, likewise; without it, there are none.")
@click.option("--redis", default="", help="URL of Valkey with {password}; without it, your own server.")
@click.option("--web", default="http://127.0.0.1:3000", show_default=True, help="URL of the pages.")
@click.option("--apply", "applies", is_flag=True, help="Write them to the cluster of this pod, instead of printing them.")
def kubernetes_secrets(
    name: str, active_most: int, days: int, networks: tuple[str, ...], given: tuple[str, ...], *, applies: bool, **urls: str
) -> None:
    """Print the Secrets of the Helm release NAME as JSON, for kubectl apply.

    Repeat it to replace tickets that have used two thirds of their lifetime. Keep AIMESH_HOME: it has the mesh's keys. With --apply, they
    are in the Secret NAME-home.
    """
    import json

    from stack import initialization, kubernetes_secrets
    from stack.servers import replica_tickets

    home, cluster = stack_home.locate(os.environ), kubernetes_secrets.Cluster()
    namespaces = dict.fromkeys(kubernetes_secrets.GROUPS, "default") | dict(each.partition("=")[::2] for each in given)
    if applies:
        cluster.restore(home, namespaces["infra"], name)
    mesh = initialization.ensure(home, os.environ, Path.cwd()).settings.mesh
    replica_tickets.ensure(home, mesh, urls["nats"].split(","), active_most, networks or replica_tickets.PRIVATE_NETWORKS, days=days)
    for manifest in kubernetes_secrets.manifests(name, namespaces, kubernetes_secrets.files_of(home, mesh, urls)):
        if applies:
            cluster.apply(manifest)
        else:
            click.echo(json.dumps(manifest))


@stack.command("check-env")
@click.argument("file", type=click.Path(path_type=Path))
@print_format.output_options('Print a JSON list of {"line": …, "text": …}.')
@click.pass_context
def check_env(context: click.Context, /, file: Path, *, as_json: bool) -> None:
    """Check a FILE of settings, such as Compose's .env.

    Names variables that nothing reads and values that would be refused. Exits with 1 if there are any.
    """
    from stack import environment_file

    mistakes = environment_file.check(file, Path.cwd())
    if as_json:
        printing.show_json(printing.plain(mistakes))
    else:
        for mistake in mistakes:
            click.echo(printing.printable(f"{file}:{mistake.line}: {mistake.text}"))
        if not mistakes:
            click.echo(f"{file}: no mistakes")
    if mistakes:
        context.exit(1)


#: Roles that have NATS users.
_NODE_ROLES = [role.value for role in Role if role is not Role.NEWCOMER]
_NODE_NAME = "[a-z][a-z0-9-]{0,31}"


@stack.command("add-node")
@click.argument("name")
@click.argument("role", type=click.Choice(_NODE_ROLES))
@print_format.output_options('Print {"name": …, "role": …, "id": …, "key_file": …}.')
def add_node(name: str, role: str, *, as_json: bool) -> None:
    """Create a node key and add the node to the mesh: a worker on another machine, a second gateway, a CLI.

    Prints the path of the key. auth admits the node at once. With NATS_AUTH=users, your NATS server must reload nats/users.conf.
    """
    import re

    from shared.identity import node_keys
    from stack import initialization
    from stack.servers import nats_server

    if not re.fullmatch(_NODE_NAME, name):
        raise click.UsageError(f"{name!r} is not a valid node name; use lowercase letters, digits and -, starting with a letter")
    home = stack_home.locate(os.environ)
    # Ignore the environment, which only `init` and `up` save: a NATS_URL exported for a service means nothing here.
    made = initialization.ensure(home, {}, Path.cwd())
    key_file = nats_server.add_node(home, made.settings.mesh, name, Role(role), made.settings.nats_admission)
    if as_json:
        printing.show_json({"name": name, "role": role, "id": node_keys.load(key_file).id, "key_file": str(key_file)})
        return
    click.echo(str(key_file))
    if made.settings.nats_admission == "users":
        printing.note(f"To add the node, reload your NATS server (SIGHUP), which must read {home.nats / 'users.conf'}.")


@stack.command()
@click.argument("service", type=click.Choice(replica_folder.SERVICES))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--at", "place", type=click.Path(path_type=Path), help="Path that the folder will have on the other machine. Default: the same."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the replica. Default: the port of this stack's service.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Network of the replica. Default: private IPv4 networks.")
@print_format.output_options('Print {"environment": …, "only_here": …}.')
@click.pass_obj
def replica(
    here: "CliContext", /, service: str, folder: Path, *, place: Path | None, port: int | None, networks: tuple[str, ...], as_json: bool
) -> None:
    """Write all that a replica of SERVICE needs into FOLDER: an environment file, its secrets, and a ticket.

    Works with the running stack, and again after its settings have changed. The folder contains secrets: move it over SSH only.
    """
    folder, home = folder.absolute(), stack_home.locate(os.environ)
    place = (place or folder).expanduser()
    if not place.is_absolute() or shlex.quote(str(place)) != str(place):
        raise click.UsageError(f"{place} must be an absolute path without spaces and quotes; see --at")
    planned = _plan_replica(here, home, service, place, networks)
    if port is not None:
        planned.environment[f"{service.upper()}_SERVICE_PORT"] = str(port)
    replica_folder.write(folder, planned)
    if as_json:
        printing.show_json({"environment": str(folder / replica_folder.ENVIRONMENT), "only_here": list(planned.on_this_machine)})
        return
    click.echo(str(folder / replica_folder.ENVIRONMENT))
    moved = f"tar -C {folder} -c . | ssh HOST 'mkdir -p {place} && tar -C {place} -x'"
    printing.note(f"This folder has secrets. To move it to another machine, over SSH only: {moved} && rm -r {folder}")
    printing.note(f"To start the replica: set -a; . {place / replica_folder.ENVIRONMENT}; set +a; python -m services.{service}")
    if planned.on_this_machine:
        names = printing.names(planned.on_this_machine)
        printing.note(f"On this machine only: {names} can't be reached from others. See docs/howto/deploy.md, Several machines.")


def _plan_replica(
    here: "CliContext", home: stack_home.StackHome, service: str, place: Path, networks: tuple[str, ...]
) -> replica_folder.ReplicaFolder:
    from cli import profile
    from shared.api import membership
    from stack import settings, stack_plan
    from stack.servers import nats_server, replica_tickets

    recorded = settings.read_recorded(home)
    chosen = settings.load(recorded)
    if not home.enrollment.exists():
        raise errors.BadSettings(f"there is no stack in {home.root}", hint="run make up first, or set AIMESH_HOME")
    role, more = Role(service), {}
    if chosen.nats_admission == "users":
        # Such a server knows no tickets, and only the keys of its list.
        name = f"{service}-{hashlib.sha256(bytes(place)).hexdigest()[:8]}"
        more[replica_folder.KEY] = nats_server.add_node(home, chosen.mesh, name, role, chosen.nats_admission).read_bytes()
        printing.note(f"Reload your NATS server, which must read {home.nats / 'users.conf'}.")
    elif role is not Role.AUTH:  # which has the key of the CA
        request = membership.CreateTicket(
            role, ttl_seconds=_REPLICA_TICKET_SECONDS, active_most=1, networks=networks or replica_tickets.PRIVATE_IPV4_NETWORKS
        )
        made = here.run_with(profile.read(home.profile), lambda connection: connection.call(membership.create_ticket, request))
        more[replica_folder.TICKET] = made.ticket.encode()
    return replica_folder.plan(stack_plan.service_environment(home, chosen, recorded, service), place, more)


@stack.command("nats-users")
def nats_users() -> None:
    """Print the enrolled nodes as a static list of NATS users, for a server that cannot ask auth (NATS_AUTH=users)."""
    from stack import settings
    from stack.servers import nats_server

    home = stack_home.locate(os.environ)
    mesh = settings.load(settings.read_recorded(home)).mesh
    nodes = nats_server.read_enrolled(home)
    if not nodes:
        raise errors.BadSettings(f"there is no stack in {home.root}", hint="run make up first")
    click.echo(nats_server.render_users(mesh, nodes), nl=False)


@stack.command("nats-keys")
@click.option("--renew", is_flag=True, required=True, help="Replace auth's keys for NATS logins.")
def nats_keys(*, renew: bool) -> None:
    """Replace auth's keys for NATS logins, for example after a leak.

    Then restart the stack. Nodes keep their keys and certificates.
    """
    from stack import initialization
    from stack.servers import nats_server

    assert renew
    home = stack_home.locate(os.environ)
    if not nats_server.read_enrolled(home):
        raise errors.BadSettings(f"there is no stack in {home.root}", hint="run make up first")
    for name in nats_server.AUTH_KEYS:
        (home.secrets / name).unlink(missing_ok=True)
    initialization.ensure(home, {}, Path.cwd())
    click.echo("New keys are written. Restart the stack (make up), and your own NATS servers with the new nats/users.conf.")


@stack.command()
@click.option("--ask", metavar="PROMPT", help="Send this prompt to the default model when everything is ready.")
def up(ask: str | None, **of_features: object) -> None:
    """Start everything in the background and wait until it is ready. Safe to run again."""
    from stack import features, first_run, model_hint, stack_plan, status_overview, up_down

    home = stack_home.locate(os.environ)
    for part in features.parts():
        part.before_start(home, of_features, _print)

    async def prepare(settings: "StackSettings") -> None:
        await first_run.ensure_profile(home, settings)
        _print(f"pages: {stack_plan.public_url('web', settings)}; user and password: {_short(first_run.page(home))}")

    settings = asyncio.run(up_down.up(home, os.environ, Path.cwd(), _print, prepare))
    # Without a model here, the models may be on other machines.
    if ask is not None and all(row.ready for row in asyncio.run(status_overview.collect(home)) if row.name == "inference"):
        _run_prompt(home, ask)
        if printing.is_terminal() and (hint := asyncio.run(model_hint.find(home))):
            click.echo(f"\n{hint}")
    _show_places(home, settings)


def _add_options() -> None:
    from stack import features

    up.params.extend(option for part in features.parts() for option in part.up_options)


_add_options()


def _run_prompt(home: stack_home.StackHome, prompt: str) -> None:
    import subprocess
    import sys

    # Temperature 0, because a small model should not be unlucky with its first answer.
    words = ["infer", "--no-cache", "--temperature", "0", "--max-tokens", "64", prompt]
    click.echo(f"\n$ aicli {shlex.join(words)}")
    sys.stdout.flush()
    environment = {name: value for name, value in os.environ.items() if name not in ("AICLI_PROFILE", "AICLI_API_KEY")}
    environment["AIMESH_HOME"] = str(home.root)
    command = [sys.executable, "-m", "cli.main", *words]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, env=environment, cwd=Path(__file__).resolve().parents[1], stdin=subprocess.DEVNULL, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:
        raise click.ClickException("the first answer took more than 2 minutes; run: aicli doctor") from None
    if done.returncode != 0:
        raise click.ClickException("everything is running, but the first answer failed; run: aicli doctor")


def _show_places(home: stack_home.StackHome, settings: "StackSettings") -> None:
    import shutil
    import sys

    from stack import first_run, stack_plan
    from stack.settings import read_recorded

    gateway = stack_plan.public_url("gateway", settings)
    page = first_run.page(home)
    rows = [
        ("web", stack_plan.public_url("web", settings)),
        ("API", f"{gateway}/v1   (OpenAI-compatible; reference: {gateway}/docs)"),
        ("metrics", f"{stack_plan.url_of('metrics', settings)}/metrics"),
        ("user", first_run.ADMIN),
        ("password and key", str(page if page.exists() else home.profile)),
    ]
    recorded = read_recorded(home)
    if line := stack_plan.install_command(settings, recorded):
        rows.append(("other machines", f"{line}   (installs aicli; for a worker: aicli admin tickets create)"))
    if providers := stack_plan.providers_of(settings):
        names = ", ".join(providers)
        rows.append(("external", f"prompts for models of {names} may leave this machine; to change it: aicli policy"))
    if recorded.get("MONEY") == "on" and asyncio.run(first_run.has_example_prices(home)):
        rows.append(("prices", "examples; before you sell, set yours: aicli admin prices set default --input … --output …"))
    click.echo("\naimesh is up.")
    for name, value in rows:
        click.echo(f"  {name:<17} {value}")
    programs = Path(sys.executable).parent
    if shutil.which("aicli") != str(programs / "aicli") and (programs / "activate").exists():
        click.echo(f"  {'first':<17} source {_short(programs / 'activate')}   (puts aicli on your PATH)")
    click.echo(f'  {"next":<17} aicli infer "…" · aicli dashboard · make status · make down')


def _short(path: Path) -> str:
    """Return the path as one would type it here."""

    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


@stack.command()
def down() -> None:
    """Stop everything. The data stays."""
    from stack import up_down

    ran = asyncio.run(up_down.down(stack_home.locate(os.environ), _print))
    click.echo("stopped; your data is kept" if ran else "nothing was running")


@stack.command()
@watching.listing_options("Print a JSON list.")
@click.pass_context
def status(context: click.Context, /, *, as_json: bool) -> None:
    """Show the status of each program. Exits with 1 if a program isn't ready."""
    from stack import status_overview
    from stack.status_overview import StatusRow

    rows = asyncio.run(status_overview.collect(stack_home.locate(os.environ)))
    columns: list[TableColumn[StatusRow]] = [
        TableColumn("PROGRAM", lambda row: row.name),
        TableColumn("STATE", lambda row: row.state, lambda row: "green" if row.ready else "red"),
        TableColumn("SINCE", lambda row: printing.ago(row.since), rank=3),
        TableColumn("PID", lambda row: str(row.pid or "–"), rank=5),
        TableColumn("CRASHES", lambda row: str(row.crashes), rank=4),
        TableColumn("URL", lambda row: row.url or "", rank=2),
        TableColumn("WHY", lambda row: row.why, wraps=True),
    ]
    printing.show_rows(rows, columns, as_json=as_json, empty="nothing is running; start it with: make up")
    if not rows or not all(row.ready for row in rows):
        context.exit(1)


@stack.command()
@click.argument("program", required=False)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines until Ctrl-C.")
@click.option(
    "-n", "--lines", default=50, show_default=True, type=click.IntRange(min=1, max=10_000), help="Number of lines to show from the end."
)
def logs(program: str | None, follow: bool, lines: int) -> None:
    """Show the log of a PROGRAM, or of all programs."""
    from stack import logs as log_files

    home = stack_home.locate(os.environ)
    known = {path.stem: path for path in sorted(home.logs.glob("*.log"))}
    if program is not None and program not in known:
        raise click.UsageError(f"there is no log of {program!r}; available: {', '.join(known) or 'none yet'}")
    chosen = known if program is None else {program: known[program]}

    def show(name: str, text: str) -> None:
        click.echo(printing.printable(text if program is not None else f"{name:<15} {text}"))

    if follow:
        for line in log_files.follow(chosen, lines):
            show(line.program, line.text)
    for name, path in chosen.items():
        for text in log_files.tail(path, lines):
            show(name, text)


@stack.command()
@click.argument("program")
def restart(program: str) -> None:
    """Restart a PROGRAM. It gets up to 30 s to finish running requests."""
    from stack import control, status_overview

    home = stack_home.locate(os.environ)
    before = asyncio.run(control.send(home.control_socket, control.StatusRequest()))
    answer = asyncio.run(control.send(home.control_socket, control.Restart(program)))
    if answer is None:
        raise click.ClickException("nothing is running; start it with: make up")
    if not answer.ok:
        raise click.UsageError(answer.error)
    again = asyncio.run(status_overview.until_restarted(home, program, before))
    click.echo(f"{program} restarted, pid {again.pid}")


@stack.command()
@click.option("--status", is_flag=True, help="List the migrations that ran and those that are pending.")
@click.option("--pre", is_flag=True, help="Run the pending pre migrations, without starting a service. No restore point is written.")
@click.option("--post", is_flag=True, help="Run the pending post migrations. Refused while a node of an older version runs.")
@print_format.output_options("Print a JSON list of the schemas.")
@click.pass_obj
def migrate(here: "CliContext", /, *, status: bool, pre: bool, post: bool, as_json: bool) -> None:
    """Show the migrations of each service's schema, prepare an upgrade, or finish it.

    Services run pre migrations when they start. With MIGRATE=off they don't: run --pre before you start the new version. Post migrations
    remove what only older versions need. After them, to go back to an older version, use aicli stack restore --before-upgrade VERSION.
    """
    if status + pre + post != 1:
        raise click.UsageError("give one of --status, --pre and --post")
    from stack import schema_migrations

    home = stack_home.locate(os.environ)
    urls = schema_migrations.database_urls(home, os.environ, Path.cwd())
    if pre:
        _report_migrations(asyncio.run(schema_migrations.run_pre(urls)))
    if post:
        _migrate_post(here, home, urls)
    columns: list[TableColumn[SchemaStatus]] = [
        TableColumn("SCHEMA", lambda row: row.schema),
        TableColumn("APPLIED", lambda row: str(len(row.applied))),
        TableColumn("PENDING PRE", lambda row: printing.names(row.pending_pre), wraps=True),
        TableColumn("PENDING POST", lambda row: printing.names(row.pending_post), wraps=True),
    ]
    printing.show_rows(asyncio.run(schema_migrations.read(urls)), columns, as_json=as_json, empty="no service has a database here")


def _migrate_post(here: "CliContext", home: stack_home.StackHome, urls: "Mapping[str, str]") -> None:
    from cli import profile
    from shared.api import gateway
    from shared.telemetry.version import version
    from stack import schema_migrations

    # This stack's mesh, whatever AICLI_PROFILE says. A container has no profile of a home.
    chosen = profile.read(home.profile) if home.profile.is_file() else here.profile()
    nodes = here.run_with(chosen, lambda connection: connection.call(gateway.list_nodes, gateway.ListNodes())).nodes
    schema_migrations.refuse_older(nodes, version())
    _report_migrations(asyncio.run(schema_migrations.run_post(urls)))


def _report_migrations(done: list[str]) -> None:
    printing.note(f"Ran {', '.join(done)}." if done else "There was nothing to run.")


@stack.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SERVICE] [ARGUMENT OF PSQL]...")
def psql(words: tuple[str, ...]) -> None:
    """Open psql on the embedded PostgreSQL.

    With SERVICE (auth, gateway or metrics), connect as that service's role: its schema, rows of all tenants. Without it, connect as
    superuser. Other arguments go to psql: aicli stack psql gateway -c "SELECT count(*) FROM request_logs"
    """
    from stack import secret_files, stack_plan
    from stack.servers import postgres

    home = stack_home.locate(os.environ)
    server = stack_plan.postgres_of(home)
    if not server.socket.exists():
        raise click.ClickException(
            "the embedded PostgreSQL isn't running; start it with: make up. For your own server (DATABASE_URL), use psql directly"
        )
    if words[:1] and words[0] in secret_files.DATABASE_ROLES:
        role, arguments = words[0], words[1:]
        password = secret_files.read(home, f"postgres_{role}")
        ours = postgres.environment_of_psql(server, role, password, {"search_path": role, "aimesh.tenant": "*"})
    elif words[:1] and not words[0].startswith("-"):
        raise click.UsageError(f"{words[0]!r} has no tables; SERVICE must be one of {', '.join(secret_files.DATABASE_ROLES)}")
    else:
        arguments = words
        ours = postgres.environment_of_psql(server, server.admin, secret_files.read(home, secret_files.POSTGRES_ADMIN), {})
    others = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    program = str(postgres.binaries() / "psql")
    os.execve(program, [program, *arguments], {**others, **ours})  # noqa: S606 - the wheel's own psql, in place of this process
