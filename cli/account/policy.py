"""`aicli policy`: show, change and explain what callers may use, and who may see their prompts."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

import click
import msgspec

from cli import value_completion
from cli.cli_context import CliContext
from cli.options import Command
from cli.output import print_format, printing, watching
from shared import api, errors
from shared.types import KeyId, TenantId

if TYPE_CHECKING:
    from typing import Any

    from cli.connection import CliConnection
    from shared.api.auth import ApiKey
    from shared.api.configuration import PolicyRule, PolicyState
    from shared.config_documents import PolicyDocument

#: Copies of shared.config_documents.Machines and Flex, so that `--help` need not import them; a test compares them.
MACHINES, FLEX = ("own", "internal", "trusted", "group"), ("only", "allowed", "never")
RULES = (
    "external",
    "machines",
    "models",
    "targets",
    "direct_models",
    "max_price",
    "show_targets",
    "store_items",
    "stored_prompts",
    "flex",
    "guard",
)
_NONE = "none"


@click.group()
def policy() -> None:
    """Show and change policies: the allowed models, machines and providers.

    Policies of the mesh, the organization (or else the default one) and the key apply together: each can only add restrictions.
    """


def _level_options(*, of_mesh: bool) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        if of_mesh:
            command = click.option("--default", "level", flag_value="default", help="The policy of organizations without their own.")(
                command
            )
            command = click.option("--mesh", "level", flag_value="mesh", help="The policy of the whole mesh.")(command)
        key = click.option("--key", metavar="NAME_OR_ID", shell_complete=value_completion.keys, help="The policy of a key.")
        organization = click.option("--organization", metavar="NAME_OR_ID", help="The policy of an organization.")
        return organization(key(command))

    return decorate


@policy.command()
@_level_options(of_mesh=True)
@print_format.output_options("Print the policy as a JSON object.")
@click.pass_obj
def show(here: CliContext, /, *, as_json: bool, **chosen: str | None) -> None:
    """Show one policy as YAML. See `aicli policy explain` for the effective rules."""
    from shared import yaml_text

    async def work(connection: "CliConnection") -> "PolicyState":
        return await connection.call(api.configuration.get_policy, api.configuration.GetPolicy(await _name(connection, chosen)))

    found = here.run(work)
    if as_json:
        printing.show_json(printing.plain(found))
    elif found.policy is None:
        printing.note(f"There is no policy {found.name}.")
    else:
        import msgspec

        click.echo(yaml_text.render({found.name: msgspec.to_builtins(found.policy)}), nl=False)


@policy.command("set")
@_level_options(of_mesh=True)
@click.option("--external", metavar="PROVIDERS", help="Providers that may get prompts, separated by commas; * for all, `none` for none.")
@click.option("--machines", type=click.Choice(MACHINES), help="Machines that may see prompts, from own (fewest) to group (all).")
@click.option("--models", metavar="NAMES", help="Models that callers may use, separated by commas; * stands for any characters.")
@click.option("--targets", metavar="NAMES", help="Served models behind routes, in the same form.")
@click.option("--direct-models/--no-direct-models", default=None, help="Whether callers may name served models directly, not only routes.")
@click.option("--max-input-price", metavar="CREDITS", help="Maximum price per million input tokens.")
@click.option("--max-output-price", metavar="CREDITS", help="Maximum price per million output tokens.")
@click.option("--show-targets/--hide-targets", default=None, help="Whether answers say which target of a route was chosen.")
@click.option("--store-items/--no-store-items", default=None, help="Whether the items of answers are kept for an hour, to refer to them.")
@click.option("--stored-prompts", type=click.Choice(("never", "24h")), help="How long prompts of responses are kept, to continue them.")
@click.option("--flex", type=click.Choice(FLEX), help="Whether requests may run behind live ones at half the price, or all must.")
@click.option("--guard-prompt", metavar="KIND=ACTION,…", help="Action for personal data and secrets in prompts.")
@click.option("--guard-answer", metavar="KIND=ACTION,…", help="The same for answers.")
@click.option(
    "--guard-moderation", metavar="NAME=VALUE,…", help="Which texts a moderation model refuses or reports; none removes the check."
)
@click.option("--guard-countries", metavar="CODES", help="Countries whose phone and national ID numbers are found, such as DE,US.")
@click.option("--unset", "unset", multiple=True, type=click.Choice(RULES), help="Remove this rule. Can be repeated.")
@click.option("--remove", is_flag=True, help="Remove the policy.")
@click.option("--note", default="", metavar="TEXT", help="Note for the history.")
@print_format.output_options("Print the policy as a JSON object.")
@click.pass_obj
def set_(here: CliContext, /, *, remove: bool, note: str, as_json: bool, **options: "Any") -> None:
    """Change some rules of a policy. Other rules don't change.

    Kinds of guardrails: secret, card, iban, national_id, email, phone, ip, own. Actions: off, report, mask, refuse. Own patterns are set
    in the file of `aicli admin config apply`.

    Moderation: route=ROUTE, prompt=ACTION and answer=ACTION (off, report, refuse), categories=violence+hate, threshold=0.5,
    on_error=refuse or allow.
    """
    chosen = {name: options.pop(name) for name in ("level", "organization", "key")}
    unset = options.pop("unset")
    given = {name: value for name, value in options.items() if value is not None}
    if not any(chosen.values()):
        raise click.UsageError("name the policy: --mesh, --default, --organization or --key")
    if remove == bool(given or unset):
        raise click.UsageError("give rules to set or --unset, or only --remove")

    async def work(connection: "CliConnection") -> "PolicyState":
        before = await connection.call(api.configuration.get_policy, api.configuration.GetPolicy(await _name(connection, chosen)))
        wanted = None if remove else _changed(before.policy, given, unset)
        return await connection.call(api.configuration.set_policy, api.configuration.SetPolicy(before.name, wanted, before.version, note))

    done = here.run(work)
    what = "Removed" if done.policy is None else "Set"
    printing.show_message(done, f"{what} the policy {done.name} (version {done.version}). It is in use within seconds.", as_json=as_json)


def _changed(before: "PolicyDocument | None", given: "dict[str, Any]", unset: tuple[str, ...]) -> "PolicyDocument":
    """Raises BadRequest for an invalid value."""
    from shared.config_documents import PolicyDocument

    rules: dict[str, Any] = {} if before is None else msgspec.to_builtins(before)
    for rule in unset:
        rules.pop(rule, None)
    for name in ("external", "models", "targets"):
        if name in given:
            rules[name] = _parts(given[name])
    prices = {side: given[f"max_{side}_price"] for side in ("input", "output") if f"max_{side}_price" in given}
    if prices:
        rules["max_price"] = {**rules.get("max_price", {}), **prices}
    if guard := _guard(given):
        rules["guard"] = {**rules.get("guard", {}), **guard}
    rules |= {
        name: given[name]
        for name in ("machines", "direct_models", "show_targets", "store_items", "stored_prompts", "flex")
        if name in given
    }
    try:
        return msgspec.convert(rules, PolicyDocument)
    except msgspec.ValidationError as error:
        raise errors.BadRequest(f"the policy can't be used: {error}", hint="see `aicli policy set --help`") from error


def _parts(text: str) -> list[str]:
    return [] if text == _NONE else [part.strip() for part in text.split(",")]


def _guard(given: "dict[str, Any]") -> "dict[str, Any]":
    guard: dict[str, Any] = {}
    for place in ("prompt", "answer"):
        if (text := given.get(f"guard_{place}")) is not None:
            pairs = [pair.partition("=") for pair in _parts(text)]
            guard[place] = {kind.strip(): action.strip() for kind, _, action in pairs}
    if (text := given.get("guard_moderation")) is not None:
        values: dict[str, Any] = {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in _parts(text))}
        if "categories" in values:
            values["categories"] = values["categories"].split("+")
        with contextlib.suppress(KeyError, ValueError):
            values["threshold"] = float(values["threshold"])
        guard["moderation"] = values or None
    if (text := given.get("guard_countries")) is not None:
        guard["countries"] = _parts(text)
    return guard


@policy.command()
@_level_options(of_mesh=False)
@watching.listing_options("Print a JSON list of the rules.")
@click.pass_obj
def explain(here: CliContext, /, *, as_json: bool, **chosen: str | None) -> None:
    """Show the effective rules, and the levels that they come from. Default: your own."""
    from shared.lists.policies import EFFECTIVE

    async def work(connection: "CliConnection") -> "tuple[PolicyRule, ...]":
        organization = await find_organization(connection, chosen["organization"]) if chosen["organization"] else None
        key = await find_key(connection, chosen["key"]) if chosen["key"] else None
        return (await connection.call(api.configuration.explain_policy, api.configuration.ExplainPolicy(organization, key))).rules

    printing.show_list(here.run(work), EFFECTIVE, as_json=as_json)


async def _name(connection: "CliConnection", chosen: "dict[str, str | None]") -> str | None:
    """Return the name of the chosen policy; None without options, for the caller's organization."""
    from shared.config_documents import KEY_POLICY, ORGANIZATION_POLICY

    given = [value for value in chosen.values() if value]
    if len(given) > 1:
        raise click.UsageError("name only one of --mesh, --default, --organization and --key")
    if chosen["level"]:
        return chosen["level"]
    if chosen["key"]:
        return f"{KEY_POLICY}{await find_key(connection, chosen['key'])}"
    if chosen["organization"]:
        return f"{ORGANIZATION_POLICY}{await find_organization(connection, chosen['organization'])}"
    return None


async def find_organization(connection: "CliConnection", name: str) -> "TenantId":
    """Return the organization's id. Raises NotFound."""
    if (given := _uuid(name)) is not None:
        return TenantId(given)
    found = (await connection.call(api.organizations.list_organisations, api.organizations.ListOrganizations())).organisations
    matching = [each.id for each in found if each.name == name]
    if not matching:
        try:
            listed = await connection.call(api.organizations.list_all_organisations, api.organizations.ListAllOrganizations(search=name))
            matching = [each.id for each in listed.organisations if each.name == name]
        except errors.NotAllowed:
            pass
    if len(matching) != 1:
        raise errors.NotFound(f"{'several organizations are' if matching else 'no organization is'} called {name!r}", hint="use its ID")
    return matching[0]


async def find_key(connection: "CliConnection", name: str) -> "KeyId":
    """Return the key's id. Raises NotFound."""
    if (given := _uuid(name)) is not None:
        return KeyId(given)
    listed = (await connection.call(api.auth.list_api_keys, api.auth.ListApiKeys())).keys
    matching: list[ApiKey] = [key for key in listed if key.is_active and key.name == name]
    if len(matching) != 1:
        raise errors.NotFound(
            f"{'several keys are' if matching else 'you have no key'} called {name!r}", hint="see `aicli keys list -o wide`"
        )
    return matching[0].id


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
