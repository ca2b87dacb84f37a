"""`aicli models sign`, `verify` and `trust`: publishers' signatures of versions, and the rules about whose count."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cli.ask import publisher_keys, version_lookup
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api, errors

if TYPE_CHECKING:
    from shared.config_documents import TrustDocument

#: A copy of shared.config_documents.TrustMode, so that `--help` need not import it; a test compares the two.
MODES = ("off", "warn", "enforce")
_version = click.argument("version", metavar="NAME@VERSION")


class _Rule(msgspec.Struct, frozen=True):
    models: str
    mode: str
    #: Fingerprints.
    keys: tuple[str, ...]


@click.command()
@_version
@click.option("--key", "key_file", metavar="FILE", required=True, help="Publisher's private key in PEM, which stays on this machine.")
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def sign(here: CliContext, /, version: str, *, key_file: str, as_json: bool) -> None:
    """Sign a version with a publisher's key.

    NAME@sha256:… makes sure of the content: the digest that `push` shows.
    """
    from shared.models import trust_bundle

    found, key = version_lookup.find_fixed(here, version), publisher_keys.read_private(here.folder / Path(key_file).expanduser())
    bundle = trust_bundle.sign_version(key, f"{found.model}@{found.version}", found.digest)
    here.call(api.model_trust.sign_model_version, api.model_trust.SignModelVersion(found.model, found.version, bundle))
    text = f"Signed {found.model}@{found.version} ({found.digest}) with the key {trust_bundle.fingerprint(key.public_key())}."
    printing.show_message(found, text, as_json=as_json)


@click.command()
@_version
@click.option(
    "--key", "key_files", metavar="FILE", multiple=True, help="Trust this public key only. Repeatable. Default: the mesh's rules."
)
@click.pass_obj
def verify(here: CliContext, /, version: str, *, key_files: tuple[str, ...]) -> None:
    """Check here whether a trusted key has signed a version."""
    from shared.config_documents import TrustDocument, TrustMode
    from shared.models import manifest, trust_rules
    from shared.models.trust_rules import LoadableModel

    found = version_lookup.find_fixed(here, version)
    name = f"{found.model}@{found.version}"
    known = here.call(api.model_trust.read_model_trust, api.model_trust.ReadModelTrust(found.model, found.version))
    rules = {name: TrustDocument(mode=TrustMode.ENFORCE, keys=_read_keys(here, key_files))} if key_files else known.rules
    wanted = {each: msgspec.structs.replace(rule, mode=TrustMode.ENFORCE) for each, rule in trust_rules.find_rules(rules, [name]).items()}
    if not wanted:
        raise errors.BadRequest(f"no rule of the mesh is for {name}", hint="name the publisher's public key: --key FILE")
    if (content := manifest.read(known.manifest)).digest != found.digest:
        raise errors.BadRequest(f"the gateway sent the manifest {content.digest}, not {found.digest}")
    verdict = trust_rules.judge(wanted, "the rule", LoadableModel((name,), content, known.signatures))
    if verdict.is_refused:
        raise errors.NotAllowed(f"{name} is not trusted: {verdict.reason}")
    click.echo(f"A trusted key has signed {name} ({found.digest}).")


@click.group()
def trust() -> None:
    """Show and change whose signatures models need."""


@trust.command()
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def show(here: CliContext, /, *, as_json: bool) -> None:
    """List the mesh's rules. The longest name that matches a model counts."""
    from shared.models import trust_bundle

    def name(key: str) -> str:
        return trust_bundle.fingerprint(trust_bundle.read_public_key(key))

    rows = [_Rule(models, rule.mode, tuple(map(name, rule.keys))) for models, rule in sorted(_read_rules(here).items())]
    columns: list[TableColumn[_Rule]] = [
        TableColumn("MODELS", lambda rule: rule.models),
        TableColumn("MODE", lambda rule: rule.mode),
        TableColumn("KEYS", lambda rule: printing.names([key[:16] for key in rule.keys])),
    ]
    printing.show_rows(rows, columns, as_json=as_json, empty="No rules: nothing needs a signature.")


@trust.command("set")
@click.argument("models", metavar="NAME")
@click.option("--mode", type=click.Choice(MODES), required=True, help="enforce: don't load other versions. warn: load them with a warning.")
@click.option(
    "--key", "key_files", metavar="FILE", multiple=True, help="Publisher's public key in PEM. Repeatable. Default: the present keys."
)
@click.pass_obj
def set_trust(here: CliContext, /, models: str, *, mode: str, key_files: tuple[str, ...]) -> None:
    """Require signatures of the models called NAME, which may end with *. Admins only."""
    from shared.config_documents import ConfigKind, TrustDocument, TrustMode

    known = _read_rules(here).get(models)
    keys = _read_keys(here, key_files) if key_files or known is None else known.keys
    body = msgspec.json.encode(TrustDocument(mode=TrustMode(mode), keys=keys)).decode()
    document = api.configuration.ConfigDocument(ConfigKind.TRUST, models, body)
    here.call(api.configuration.apply_config, api.configuration.ApplyConfig(documents=(document,)))
    printing.note(f"{models}: {mode}, {len(keys)} keys. Workers follow within 30 seconds.")


COMMANDS = (sign, verify, trust)


def _read_rules(here: CliContext) -> "dict[str, TrustDocument]":
    return here.call(api.model_trust.read_model_trust, api.model_trust.ReadModelTrust()).rules


def _read_keys(here: CliContext, files: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(publisher_keys.read_small(here.folder / Path(file).expanduser()).decode("utf-8", "replace") for file in files)
