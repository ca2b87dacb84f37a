"""`aicli mesh export`: print what a JavaScript peer needs to call the mesh as this profile, as a JSON object."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import printing
from shared import api, errors
from shared.types import NodeId, Role

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from cli.output.printing import Json
    from shared.api.membership import Membership
    from shared.identity import node_keys


@dataclass(frozen=True, slots=True)
class _Found:
    membership: "Membership"
    auths: "list[NodeId]"
    gateways: "list[NodeId]"


@click.command()
@click.option("--json", is_flag=True, expose_value=False, help="Accepted for consistency: the output is always JSON.")
@click.pass_obj
def export(here: CliContext, /) -> None:
    """Print a key, a fresh certificate and addresses for a JavaScript peer, as a JSON object.

    Works for profiles created by aicli mesh connect. The output contains the profile's key: treat it like a password.
    """
    from shared.identity import node_keys

    profile = here.profile()
    key_file = profile.node_key
    if profile.mesh_file is None:
        hint = "create a suitable profile on another machine or under another --profile: aicli mesh connect TICKET"
        raise errors.BadSettings("this profile connects over NATS and has no certificate", hint=hint)
    key = node_keys.load(key_file)
    found = here.run(_collect, key_needed=False)
    printing.note("This contains your profile's key: anyone who reads it can act as this machine until it is revoked.")
    printing.show_json(_describe(key, found))


async def _collect(connection: "CliConnection") -> _Found:
    # The certificate on disk could expire within the hour.
    renewed = await connection.call(api.membership.renew_certificate, api.membership.RenewCertificate())
    # The answer does not matter; the call waits until a gateway is found, and needs no credential.
    await connection.call(api.gateway.get_service_health, api.gateway.GetServiceHealth())
    return _Found(renewed, connection.alive(Role.AUTH), connection.alive(Role.GATEWAY))


def _describe(key: "node_keys.NodeKey", found: _Found) -> "dict[str, Json]":
    from base64 import b64encode

    from shared.identity import node_keys
    from shared.node import swarm_settings

    bootstrap = found.membership.bootstrap
    is_public = not bootstrap or bootstrap == (swarm_settings.PUBLIC,)
    return {
        "seed": key.raw_seed.hex(),
        "certificate": b64encode(found.membership.certificate).decode(),
        # hyperdht expects an empty list for a private DHT, and null for the public one.
        "bootstrap": None if is_public else list(bootstrap),
        "nodes": {
            "auth": [node_keys.raw_of(node).hex() for node in found.auths],
            "gateway": [node_keys.raw_of(node).hex() for node in found.gateways],
        },
    }
