"""Renders each generated page of docs/reference/: settings, RPC methods, who may do what, frames, errors, subjects."""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Iterator
from types import ModuleType

import msgspec

import services
from services.web.session import page_access as pages
from shared import api, config, errors, telemetry
from shared.access import access_table
from shared.access.access_table import AccessRule, Audience, Permission
from shared.api.method import Method, Nothing, StreamMethod
from shared.discovery import topics
from shared.frames import wire
from shared.types import SERVICE_NAMES, MeshName, NodeId, Role
from stack import settings as stack_settings
from tools import shapes

SECTIONS = {
    "auth": "Users, sessions and API keys. Served by the auth service.",
    "gateway": "The door for requests. Served by the gateway.",
    "inference": "Models and prompts. Served by every worker.",
    "metrics": "Numbers in, health and Prometheus text out. Served by the metrics service.",
    "node": "What every service serves about itself.",
}


SETTINGS_HEAD = """# Settings

Services read these variables once, when they start; all mistakes are reported together. Every variable may also be given
as `NAME_FILE`, the path of a file that holds the value: use that for secrets (marked *secret*). An empty variable counts
as not set. Given to `make up`, they are remembered and handed to the services that read them.
"""

STACK_HEAD = """
## make up

What the embedded stack reads besides. `AIMESH_HOME` is the folder that holds everything of a stack (default: `.aimesh` in the
checkout); several stacks run side by side with a folder and ports of their own.
"""

METHODS_HEAD = """# RPC methods

Every method of the mesh, as `shared/api` declares it. *Callers* are roles of nodes; what a person may do comes from the
credential in the call. Field names are those on the wire. A method is also a NATS micro endpoint (msgpack, or JSON
with the header `content-type: application/json`); [the protocol](../protocol.md#stock-clients) shows how stock clients call it.
"""

ACCESS_HEAD = """# Who may do what

A call passes two walls: the role of the *node* that brings it (which the mesh vouches for), and the permissions of the *person* whose
credential is in it. A method, a route or a page without a row here is served to nobody: its program does not start. Whose data a
method may touch is checked once more where it works, and by row-level security in PostgreSQL.

A login may do what its role may. A key may do that part of it which its kind and its scopes leave: `live` keys have all of their
owner's permissions but an administrator's, `test` keys `inference:execute` and `model:read`, `adm` keys an administrator's.

In the tables, one of the permissions named is enough; *anybody known* is every good credential; *nobody is asked about* means that the
node's role alone decides, so anybody may where web or the gateway is among the callers. *Fresh*: a login that has not shown a password
or a code for {minutes} minutes is asked for one first; keys are not.
"""

PAGES_HEAD = """
## Pages

What web shows, by the beginning of the path; the longest that fits holds. What a page does, auth and the gateway decide by the tables
above, with the visitor's own credential.
"""

FRAMES_HEAD = """# Frames

Version {version} of the protocol. A frame is a msgpack array: the tag, then the fields in this order. Fields may be left off
at the end where they have a default; unknown fields at the end are ignored. One write carries a list of frames. What may
follow what is in [the protocol page](../protocol.md).
"""

FAILURES_HEAD = """# Errors

The code is for ever: match on it. Message and hint are for people and may change. *Fault* says who has to change something
for the call to succeed; *retry* whether sending the same again can help. Over HTTP the error is an OpenAI error object
with this status.

One code is found only in the request log, because nobody was left to send it to: `gateway_lost`. The gateway died while the request ran,
and another gateway ended it two minutes later. It costs the tokens of a stream that the dead gateway had passed on, by the receipt of
the worker that ran it, and nothing where there is no receipt. Answers that were not streamed, and requests with an `Idempotency-Key`,
cost nothing.
"""

SUBJECTS_HEAD = """# NATS subjects and permissions

`m` is the mesh's name, `N` the node's public nkey, `P` a peer's. The server enforces this table, so a subject's last two
words are the true role and node of its sender. `nats.conf` is generated from the same table, and a test walks all of it
against a real server.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- cli.md and metrics.md ------------------------------------------------------------------------------------------


def commands() -> str:
    from cli import reference as cli_reference  # noqa: PLC0415 - the CLI is not needed for any other page

    return cli_reference.render()


def metrics() -> str:
    return telemetry.reference()


# --- settings.md ----------------------------------------------------------------------------------------------------


def settings() -> str:
    """One table of what all services share, and one of what each adds."""
    kinds = {name: _settings_struct(importlib.import_module(f"services.{name}.settings")) for name in _service_names()}
    shared_names = set.intersection(*({setting.variable.name for setting in config.settings_of(kind)} for kind in kinds.values()))
    first = next(iter(kinds.values()))
    parts = [
        SETTINGS_HEAD,
        "## Every service\n",
        _settings_table(setting for setting in config.settings_of(first) if setting.variable.name in shared_names),
    ]
    for name, kind in kinds.items():
        own = [setting for setting in config.settings_of(kind) if setting.variable.name not in shared_names]
        parts += [f"\n## {name}\n", f"`python -m services.{name}`\n", _settings_table(own)]
    known = {name for kind in kinds.values() for setting in config.settings_of(kind) for name in setting.variable.names}
    parts += [
        STACK_HEAD,
        _settings_table(row for row in config.settings_of(stack_settings.StackSettings) if row.variable.name not in known),
    ]
    return "\n".join(parts)


def _service_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(services.__path__) if module.ispkg)


def _settings_struct(module: ModuleType) -> type[msgspec.Struct]:
    """The one settings struct that the module itself declares."""
    own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    return next(kind for kind in own if issubclass(kind, msgspec.Struct) and any(True for _ in config.settings_of(kind)))


def _settings_table(rows: Iterable[config.Setting]) -> str:
    return table(("variable", "default", "meaning"), (_settings_row(row) for row in rows))


def _settings_row(setting: config.Setting) -> tuple[str, str, str]:
    default = "**must be given**" if setting.default is None else "(none)"
    if setting.default:
        default = f"`{setting.default}`"
    variable = setting.variable
    meaning = variable.help + (f"; `{variable.override}` goes before it" if variable.override else "")
    return f"`{variable.name}`", default, meaning + (" *(secret)*" if variable.secret else "")


# --- rpc.md ---------------------------------------------------------------------------------------------------------


def methods() -> str:
    """Every method with who may call it and what goes in and out, then every struct that they name."""
    parts = [METHODS_HEAD]
    used = shapes.Shapes()
    for section, title in SECTIONS.items():
        found = list(_methods_of(section))
        if not found:
            continue
        parts += [f"## {section}\n", f"{title}\n"]
        for method in found:
            parts += _method(method, used)
    parts += ["## Types\n"]
    for kind in used.reachable():
        parts += _struct(kind, used)
    return "\n".join(parts)


def _methods_of(section: str) -> Iterator[Method | StreamMethod]:  # type: ignore[type-arg]  # of any types
    """In the order in which the contract declares them."""
    for found in pkgutil.iter_modules(api.__path__):
        for value in vars(importlib.import_module(f"shared.api.{found.name}")).values():
            if isinstance(value, Method | StreamMethod) and value.name.partition(".")[0] == section:
                yield value


def _method(method: Method | StreamMethod, used: shapes.Shapes) -> list[str]:  # type: ignore[type-arg]  # of any types
    callers = ", ".join(role for role in Role if role in method.callers)
    if isinstance(method, StreamMethod):
        taken = "" if method.accepted is Nothing else f"*once it is taken* {used.show(method.accepted)}, *then a* "
        answers = f"{taken}*stream of* {used.show(method.item)}, *then* {used.show(method.end)}"
    else:
        answers = used.show(method.reply)
    lines = [f"### {method.name}\n", f"- callers: {callers}", f"- request: {used.show(method.request)}", f"- answer: {answers}"]
    ways = ""
    if isinstance(method, StreamMethod):
        ways = " with the header `stream: true`"
        if method.whole is not None:
            lines.append(f"- whole answer, for stock clients that do not ask for the stream: {used.show(method.whole)}")
            ways += " or without it"
    if method.served_by is not None and (isinstance(method, Method) or Role.OPERATOR in method.callers):
        lines.append(f"- NATS micro: `{topics.micro_endpoint(MeshName('<mesh>'), method.served_by, method.name)}`{ways}")
    return [*lines, ""]


def _struct(kind: type[msgspec.Struct], used: shapes.Shapes) -> list[str]:
    lines = [f"### {kind.__name__}\n"]
    if meaning := shapes.docstring(kind):
        lines.append(f"{meaning}\n")
    fields = shapes.fields(kind, used)
    if not fields:
        return [*lines, "No fields.\n"]
    rows = ((f"`{field.name}`", field.type, field.default, field.meaning) for field in fields)
    return [*lines, table(("field", "type", "default", "meaning"), rows), ""]


# --- access.md ------------------------------------------------------------------------------------------------------


def who_may() -> str:
    """Roles and their permissions, then every method, route and page with who may use it."""
    return "\n".join(
        (
            ACCESS_HEAD.format(minutes=access_table.FRESH_SECONDS // 60),
            "## Roles\n",
            table(("permission", *access_table.ROLES), (_permission_row(permission) for permission in Permission)),
            "\n## Methods\n",
            table(
                ("method", "callers", "the person needs", "fresh"), (_method_row(name, row) for name, row in access_table.METHODS.items())
            ),
            "\n## Routes of the gateway\n",
            table(("route", "the person needs", "fresh"), ((f"`{name}`", *_needs(row)) for name, row in access_table.ROUTES.items())),
            PAGES_HEAD,
            table(("path", "who"), ((f"`{path}`", _visitor(who)) for path, who in pages.PAGES.items())),
        )
    )


def _permission_row(permission: Permission) -> list[str]:
    has = (granted & {permission, Permission.EVERYTHING} for granted in access_table.ROLES.values())
    return [f"`{permission}`", *("yes" if each else "" for each in has)]


def _method_row(name: str, row: AccessRule) -> tuple[str, ...]:
    method = next(found for found in _methods_of(name.partition(".")[0]) if found.name == name)
    return f"`{name}`", ", ".join(role for role in Role if role in method.callers), *_needs(row)


def _needs(row: AccessRule) -> tuple[str, str]:
    if row.who is Audience.NODE:
        return "nobody is asked about", ""
    needed = " or ".join(f"`{permission}`" for permission in Permission if permission in row.needs) or "anybody known"
    if row.halfway:
        needed += "; also a login that lacks its second step"
    if row.unless:
        needed += f"; without a credential: {', '.join(role for role in Role if role in row.unless)}"
    return needed, "yes" if row.fresh else ""


def _visitor(who: pages.PageAudience) -> str:
    return {
        pages.PageAudience.ANYBODY: "anybody",
        pages.PageAudience.PERSON: "whoever has signed in",
        pages.PageAudience.HALFWAY: "whoever has signed in, also without the second step",
        pages.PageAudience.NODE_OWNER: "node owners and administrators",
        pages.PageAudience.ADMIN: "administrators",
    }[who]


# --- frames.md ------------------------------------------------------------------------------------------------------


def frames() -> str:
    """The wire format: every frame with its tag and its fields in order."""
    kinds = {kind.__struct_config__.tag: kind for kind in typing.get_args(wire.Frame)}
    limits = {
        "a body in one frame": wire.MAX_BODY_BYTES,
        "everything before HELLO is accepted": wire.MAX_BYTES_BEFORE_HELLO,
        "a message, all its pieces together": wire.MAX_MESSAGE_BYTES,
        "one write to the transport": wire.MAX_WRITE_BYTES,
    }
    parts = [
        FRAMES_HEAD.format(version=wire.VERSION),
        table(("limit", "bytes"), ((name, f"{value:,}") for name, value in limits.items())),
        "",
    ]
    for tag, kind in sorted(kinds.items()):
        parts += [f"## {tag} {kind.__name__.upper()}\n"]
        if meaning := shapes.docstring(kind):
            parts.append(f"{meaning}\n")
        rows = ((f"`{field.name}`", field.type, field.default, field.meaning) for field in shapes.fields(kind, shapes.Shapes(linked=False)))
        parts += [table(("field", "type", "default", "meaning"), rows), ""]
    return "\n".join(parts)


# --- errors.md ------------------------------------------------------------------------------------------------------


def failures() -> str:
    """The error tree: what a script may match on."""
    rows = []
    for code, kind in errors.BY_CODE.items():
        meaning = shapes.docstring(kind) or "–"
        rows.append((f"`{code}`", str(kind.status), kind.fault.value, "yes" if kind.retryable else "no", meaning))
    rows.sort(key=lambda row: (row[1], row[0]))
    return FAILURES_HEAD + "\n" + table(("code", "HTTP", "fault", "retry", "meaning"), rows)


# --- subjects.md ----------------------------------------------------------------------------------------------------


def subjects() -> str:
    """What each role's NATS user may do, for a mesh `m` and a node `N`."""
    mesh, node, peer = MeshName("m"), NodeId("N"), NodeId("P")
    patterns = (
        ("frames from node N to node P", topics.link(mesh, Role.GATEWAY, peer, Role.AUTH, node)),
        ("everything sent to node N", topics.inbox(mesh, Role.AUTH, node)),
        ("announcements of node N", topics.announcement(mesh, Role.AUTH, node)),
        ("who is there?", topics.who(mesh)),
        ("domain events of node N", topics.event(mesh, Role.AUTH, node, "user.registered")),
        ("a method for stock NATS clients", topics.micro_endpoint(mesh, Role.AUTH, "auth.validateApiKey")),
    )
    parts = [
        SUBJECTS_HEAD,
        table(("what", "subject (example for auth)"), ((what, f"`{subject}`") for what, subject in patterns)),
        "",
    ]
    for role in Role:
        rights = topics.permissions(mesh, role, node)
        service = f" (service {SERVICE_NAMES[role]})" if role in SERVICE_NAMES else ""
        parts += [f"## {role}{service}\n", "May publish to:\n", *(f"- `{subject}`" for subject in rights.publish), ""]
        parts += ["May subscribe to:\n", *(f"- `{subject}`" for subject in rights.subscribe), ""]
    return "\n".join(parts)
