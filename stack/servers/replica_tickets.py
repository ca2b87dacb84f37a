"""Tickets for replicas of the operator's services, made before auth runs: `aicli stack init --tickets`.

The ticket itself goes to ``secrets/tickets/ROLE``, for the replicas; its public half to ``enrollment.json``, for auth.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from shared.identity import enrollment_list, node_keys, private_file, tickets
from shared.identity.enrollment_list import EnrolledTicket
from shared.types import MeshName, Role
from stack.servers import nats_server
from stack.stack_home import StackHome

ROLES = (Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB)
#: Where services of one cluster are: private networks and this machine.
PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fd00::/8", "::1/128")
#: What auth accepts in a ticket that it makes: it refuses fd00::/8, where each site has a narrower network.
PRIVATE_IPV4_NETWORKS = tuple(network for network in PRIVATE_NETWORKS if ":" not in network)
DAYS = 90


def folder_of(home: StackHome) -> Path:
    return home.secrets / "tickets"


def ensure(
    home: StackHome, mesh: MeshName, nats_urls: Sequence[str], active_most: int, networks: Sequence[str], *, days: int = DAYS
) -> list[Role]:
    """Make the tickets that are missing or have less than a third of their time left. Return their roles. The keys of the home exist."""
    authority = node_keys.load_authority(home.secrets / "mesh_ca.nk").id
    now, lifetime = int(time.time()), days * 24 * 3600
    good = {each.role for each in enrollment_list.read(home.enrollment).tickets if each.expires_at - now > lifetime // 3}
    made = [role for role in ROLES if role not in good or not (folder_of(home) / role).is_file()]
    listed = []
    folder_of(home).mkdir(mode=0o700, exist_ok=True)
    for role in made:
        ticket = tickets.new(authority, mesh, nats=tuple(nats_urls))
        private_file.replace(folder_of(home) / role, tickets.render(ticket).encode())
        bound = () if role is Role.WORKER else tuple(networks)
        listed.append(EnrolledTicket(ticket.id, ticket.key.id, role, active_most, bound, now + lifetime))
    nats_server.enroll_tickets(home, listed)
    return made
