"""Render the generated pages of docs/reference/: settings, RPC methods, access, frames, errors, subjects."""

import importlib
import inspect
import json
import pkgutil
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

import msgspec

import services
from services.web import page_access as pages
from shared import access_table, answer_table, config, config_documents, errors
from shared.access_rules import AccessRule, Audience
from shared.api import declared
from shared.api.method import Method, Nothing, StreamMethod
from shared.config_documents import ConfigKind
from shared.protocol import topics, wire
from shared.telemetry import instruments
from shared.types import SERVICE_NAMES, MeshName, NodeId, Permission, PlanName, Role
from stack import settings as stack_settings
from tools import generated, shapes

SECTIONS = {
    "auth": "Users, sessions and API keys. Served by the auth service.",
    "gateway": "Requests, credits and usage. Served by the gateway.",
    "inference": "Models and prompts. Served by every worker.",
    "metrics": "Recorded metrics, health and Prometheus text. Served by the metrics service.",
    "node": "Methods that every service serves.",
}


SETTINGS_HEAD = """# Settings

Services read these variables once, at start, and report all mistakes together. Instead of any variable, you can set `NAME_FILE` to the
path of a file that contains the value: use that for secrets (marked *secret*). An empty variable counts as not set. `make up` saves
these settings and passes them to the services that read them.
"""

STACK_HEAD = """
## make up

More settings of the embedded stack. `AIMESH_HOME` is the folder with all data of a stack (default: `.aimesh` in the checkout). Several
stacks can run side by side, each with its own folder and ports.
"""

METHODS_HEAD = """# RPC methods

Every method of the mesh, as declared in `shared/api`. *Callers* are roles of nodes; the permissions of a person come from the
credential in the call. Field names are those on the wire. A method is also a NATS micro endpoint (msgpack, or JSON
with the header `content-type: application/json`); [the protocol](../protocol.md#stock-clients) shows how stock clients call it. Those for
clients are also served [over HTTP](../protocol.md#http) at `/rpc`.
"""

ACCESS_HEAD = """# Permissions

Every call is checked twice: for the role of the calling *node*, which its certificate proves, and for the permissions of the *person*
whose credential is in the call. A program with a method, route or page that has no row here does not start. The handler of a method
and row-level security in PostgreSQL also check whose data the call may access.

A login has the permissions of its role. A key has those of its owner that its kind and scopes allow: `live` keys all but an
administrator's, `test` keys `inference:execute` and `model:read`, `adm` keys an administrator's.

In the tables, one of the listed permissions is enough. *Any valid credential* means any account. *No user* means that no person's
permission is checked; the row says whom the method answers. *No check*: the route is public, or checks a signature. *Fresh*: after
{minutes} minutes, a login must confirm its password or code first; keys are exempt.
"""

PAGES_HEAD = """
## Pages

The pages of web, by the beginning of the path; the longest match applies. Actions on a page are checked by auth and the gateway with the
tables above and the visitor's own credential.
"""

METRICS_HEAD = """# Metrics

Generated from `shared/telemetry/instruments.py`; do not edit.

Every service exports its own metrics at `/metrics` on its port. The metrics service exports those of the whole mesh, on
`METRICS_SERVICE_PORT` and on `PROMETHEUS_PORT`, and adds the labels `service` and `node` (the first 12 characters of the node
id) to each series. If a series already has one of these labels with another value, that one becomes `exported_service` or
`exported_node`. Process metrics (`ai_platform_process_resident_memory_bytes`, `…_virtual_memory_bytes`,
`…_cpu_seconds_total`, `…_open_fds`, `…_max_fds`, `…_start_time_seconds`) exist on every service.
"""

FRAMES_HEAD = """# Frames

Version {version} of the protocol. A frame is a msgpack array: the tag, then the fields in this order. Trailing fields with a
default can be left out; unknown trailing fields are ignored. One write carries a list of frames. For the order of frames, see
[the protocol](../protocol.md).
"""

FAILURES_HEAD = """# Errors

Match on the code, which never changes. Message and hint are for people and may change. *Fault* says who has to change something for the
call to succeed; *retry* says whether repeating the same call can help. Over HTTP the error is an OpenAI error object with this status.

The code `gateway_lost` appears only in the request log: the gateway died while the request was running, and another gateway ended it two
minutes later. A stream is billed for the tokens that the dead gateway had delivered, by the receipt of the worker; without a receipt it
is free. Answers that were not streamed, and requests with an `Idempotency-Key`, are free.
"""

SUBJECTS_HEAD = """# NATS subjects and permissions

`m` is the mesh's name, `N` the node's public nkey, `P` a peer's. The server enforces this table, so the last two words of
a subject are always the sender's real role and node. `nats.conf` is generated from the same table, and a test checks all of it against
a real server.
"""


# --- cli.md and metrics.md ------------------------------------------------------------------------------------------


def commands() -> str:
    from tools import cli_reference  # noqa: PLC0415 - the CLI is not needed for any other page

    return cli_reference.render()


def metrics() -> str:
    rows = (
        (f"`{one.name}`", one.kind, one.unit or "–", ", ".join(f"`{label}`" for label in one.labels) or "–", one.help)
        for one in instruments.ALL
    )
    buckets = (f"- `{one.name}`: {', '.join(f'{bound:g}' for bound in one.buckets)}" for one in instruments.ALL if one.buckets)
    return "\n".join((METRICS_HEAD, generated.table(("metric", "kind", "unit", "labels", "meaning"), rows), "\n## Buckets\n", *buckets))


# --- settings.md ----------------------------------------------------------------------------------------------------


def settings() -> str:
    """List the settings of all services, then those of each."""
    kinds = settings_kinds()
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


def settings_kinds() -> Mapping[str, type[msgspec.Struct]]:
    """Return the struct of each service."""
    return {name: _settings_struct(importlib.import_module(f"services.{name}.settings")) for name in _service_names()}


def _service_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(services.__path__) if module.ispkg)


def _settings_struct(module: ModuleType) -> type[msgspec.Struct]:
    own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    return next(kind for kind in own if issubclass(kind, msgspec.Struct) and any(True for _ in config.settings_of(kind)))


def _settings_table(rows: Iterable[config.Setting]) -> str:
    return generated.table(("variable", "default", "meaning"), (_settings_row(row) for row in rows))


def _settings_row(setting: config.Setting) -> tuple[str, str, str]:
    default = "**required**" if setting.default is None else "(none)"
    if setting.default:
        default = f"`{setting.default}`"
    variable = setting.variable
    meaning = variable.help + (f"; `{variable.override}` takes precedence" if variable.override else "")
    return f"`{variable.name}`", default, meaning + (" *(secret)*" if variable.secret else "")


# --- rpc.md ---------------------------------------------------------------------------------------------------------


def methods() -> str:
    """List every method with its callers, request and answer, then every struct in them."""
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
    """Keep the order of declaration."""
    return (method for method in declared.methods() if method.name.partition(".")[0] == section)


def _method(method: Method | StreamMethod, used: shapes.Shapes) -> list[str]:  # type: ignore[type-arg]  # of any types
    callers = ", ".join(role for role in Role if role in method.callers)
    if isinstance(method, StreamMethod):
        taken = "" if method.accepted is Nothing else f"*once admitted* {used.show(method.accepted)}, *then a* "
        answers = f"{taken}*stream of* {used.show(method.item)}, *then* {used.show(method.end)}"
    else:
        answers = used.show(method.reply)
    lines = [f"### {method.name}\n", f"- callers: {callers}", f"- request: {used.show(method.request)}", f"- answer: {answers}"]
    ways = ""
    if isinstance(method, StreamMethod):
        ways = " with the header `stream: true`"
        if method.whole is not None:
            lines.append(f"- whole answer, for stock clients that do not request the stream: {used.show(method.whole)}")
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
    return [*lines, generated.table(("field", "type", "default", "meaning"), rows), ""]


# --- access.md ------------------------------------------------------------------------------------------------------


def access() -> str:
    """List roles and their permissions, then who may use every method, route and page."""
    return "\n".join(
        (
            ACCESS_HEAD.format(minutes=access_table.FRESH_SECONDS // 60),
            "## Roles\n",
            generated.table(("permission", *access_table.ROLES), (_permission_row(permission) for permission in Permission)),
            "\n## Methods\n",
            generated.table(
                ("method", "callers", "permission", "fresh"), (_method_row(name, row) for name, row in access_table.METHODS.items())
            ),
            "\n## Routes of the gateway\n",
            generated.table(("route", "permission", "fresh"), ((f"`{name}`", *_needs(row)) for name, row in access_table.ROUTES.items())),
            PAGES_HEAD,
            generated.table(("path", "who"), ((f"`{path}`", _visitor(audience)) for path, audience in pages.PAGES.items())),
        )
    )


def _permission_row(permission: Permission) -> list[str]:
    has = (granted & {permission, Permission.EVERYTHING} for granted in access_table.ROLES.values())
    return [f"`{permission}`", *("yes" if each else "" for each in has)]


def _method_row(name: str, row: AccessRule) -> tuple[str, ...]:
    method = next(found for found in _methods_of(name.partition(".")[0]) if found.name == name)
    needs, fresh = _needs(row)
    if row.who is Audience.NODE:
        needs = f"no user: answers {answer_table.METHODS[name]}"
    return f"`{name}`", ", ".join(role for role in Role if role in method.callers), needs, fresh


def _needs(row: AccessRule) -> tuple[str, str]:
    if row.who is Audience.NODE:
        return "no check", ""
    needed = " or ".join(f"`{permission}`" for permission in Permission if permission in row.needs) or "any valid credential"
    if row.halfway:
        needed += "; also a login without its second factor"
    if row.unless:
        needed += f"; without a credential: {', '.join(role for role in Role if role in row.unless)}"
    return needed, "yes" if row.fresh else ""


def _visitor(audience: pages.PageAudience) -> str:
    return {
        pages.PageAudience.ANYBODY: "everyone",
        pages.PageAudience.PERSON: "any signed-in user",
        pages.PageAudience.HALFWAY: "any signed-in user, also without the second factor",
        pages.PageAudience.NODE_OWNER: "node owners and administrators",
        pages.PageAudience.ADMIN: "administrators",
    }[audience]


# --- frames.md ------------------------------------------------------------------------------------------------------


def frames() -> str:
    """Describe every frame with its tag and its fields in order."""
    kinds = {kind.__struct_config__.tag: kind for kind in typing.get_args(wire.Frame)}
    limits = {
        "a body in one frame": wire.MAX_BODY_BYTES,
        "all bytes before HELLO is accepted": wire.MAX_BYTES_BEFORE_HELLO,
        "a message with all its pieces": wire.MAX_MESSAGE_BYTES,
        "a request with a prompt": wire.MAX_REQUEST_BYTES,
        "one write to the transport": wire.MAX_WRITE_BYTES,
    }
    parts = [
        FRAMES_HEAD.format(version=wire.VERSION),
        generated.table(("limit", "bytes"), ((name, f"{value:,}") for name, value in limits.items())),
        "",
    ]
    for tag, kind in sorted(kinds.items()):
        parts += [f"## {tag} {kind.__name__.upper()}\n"]
        if meaning := shapes.docstring(kind):
            parts.append(f"{meaning}\n")
        rows = ((f"`{field.name}`", field.type, field.default, field.meaning) for field in shapes.fields(kind, shapes.Shapes(linked=False)))
        parts += [generated.table(("field", "type", "default", "meaning"), rows), ""]
    return "\n".join(parts)


# --- errors.md ------------------------------------------------------------------------------------------------------


def failures() -> str:
    rows = []
    for code, kind in errors.BY_CODE.items():
        meaning = shapes.docstring(kind) or "–"
        rows.append((f"`{code}`", str(kind.status), kind.fault.value, "yes" if kind.retryable else "no", meaning))
    rows.sort(key=lambda row: (row[1], row[0]))
    return FAILURES_HEAD + "\n" + generated.table(("code", "HTTP", "fault", "retry", "meaning"), rows)


# --- subjects.md ----------------------------------------------------------------------------------------------------


def subjects() -> str:
    """List the rights of each role's NATS user, for a mesh `m` and a node `N`."""
    mesh, node, peer = MeshName("m"), NodeId("N"), NodeId("P")
    patterns = (
        ("frames from node N to node P", topics.link(mesh, Role.GATEWAY, peer, Role.AUTH, node)),
        ("everything sent to node N", topics.inbox(mesh, Role.AUTH, node)),
        ("announcements of node N", topics.announcement(mesh, Role.AUTH, node)),
        ("discovery: which nodes are there", topics.announcement_query(mesh)),
        ("domain events of node N", topics.event(mesh, Role.AUTH, node, "user.registered")),
        ("a method for stock NATS clients", topics.micro_endpoint(mesh, Role.AUTH, "auth.validateApiKey")),
    )
    parts = [
        SUBJECTS_HEAD,
        generated.table(("what", "subject (example for auth)"), ((what, f"`{subject}`") for what, subject in patterns)),
        "",
    ]
    for role in Role:
        rights = topics.permissions(mesh, role, node)
        service = f" (service {SERVICE_NAMES[role]})" if role in SERVICE_NAMES else ""
        parts += [f"## {role}{service}\n", "May publish to:\n", *(f"- `{subject}`" for subject in rights.publish), ""]
        parts += ["May subscribe to:\n", *(f"- `{subject}`" for subject in rights.subscribe), ""]
    return "\n".join(parts)


def config_schema() -> str:
    """Return the JSON Schema of the file for `aicli admin config apply`."""
    bodies = config_documents.BODIES
    schemas, definitions = msgspec.json.schema_components(bodies.values(), ref_template="#/$defs/{name}")
    bodies_by_kind = {kind: {"anyOf": [schema, {"type": "null"}]} for kind, schema in zip(bodies, schemas, strict=True)}
    sections: dict[str, dict[str, object]] = {}
    for section, kind in config_documents.SECTIONS.items():
        if kind is ConfigKind.DEFAULT_MODEL:
            sections[section] = {"type": ["string", "null"]}
        elif names := config_documents.FIXED_NAMES.get(kind):
            # Policies of organizations and keys have names that begin with these.
            others = dict.fromkeys((f"^{prefix}" for prefix in config_documents.NAME_PREFIXES.get(kind, ())), bodies_by_kind[kind])
            properties = {"properties": dict.fromkeys(names, bodies_by_kind[kind]), "patternProperties": others}
            sections[section] = {"type": "object", **properties, "additionalProperties": False}
        else:
            sections[section] = {"type": "object", "additionalProperties": bodies_by_kind[kind]}
            if kind is ConfigKind.PLAN:
                sections[section] |= {"propertyNames": {"pattern": typing.get_args(PlanName)[1].pattern}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "aimesh configuration",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "$defs": definitions,
    }
    # ECMA 262 has no \\Z, and its $ matches nothing but the end.
    return json.dumps(schema, indent=2).replace("\\\\Z", "$") + "\n"
