"""The CA key is replaced while the mesh runs: all nodes admit each other at every step, and in the end the old key is worthless."""

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from services.auth.nodes.ca_keys import CaKeys, MeshState
from shared import errors
from shared.api.membership import Membership
from shared.identity import node_keys
from shared.identity.certificates import OF_ANOTHER_MESH, Subject
from shared.identity.node_keys import Authority, NodeKey
from shared.identity.trust import Trust
from shared.node import membership_file
from shared.node.certificate_renewal import CertificateRenewal
from shared.protocol.directory import Directory
from shared.types import MeshName, Role

MESH = MeshName("test")
LINK = 7
STATE = MeshState(1, 1, None, ())


class Node:
    """A node that renews its certificate when the test says so."""

    def __init__(self, role: Role, folder: Path, first: CaKeys) -> None:
        self.key = NodeKey(node_keys.new_seed())
        self.trust = Trust(self.key, role, (first.public,))
        nodes = Directory(asyncio.get_running_loop().time)
        kept = membership_file.MembershipFile(MESH, role)
        self.renewal = CertificateRenewal(self.trust, kept, folder / f"{self.key.id}.mesh", nodes, None)  # type: ignore[arg-type]  # makes no calls
        self.renew(first)

    def renew(self, keys: CaKeys) -> None:
        now = time.time()
        certificate = keys.certify(Subject(self.key.id, self.trust.role), now)
        self.renewal.take(
            Membership(
                MESH,
                self.trust.role,
                certificate,
                keys.sign_list(STATE, now),
                keys.authorities,
                keys.succession,
                keys.topics(STATE, now),
                (),
                (),
                int(now * 1000),
            )
        )

    def lets_in(self, other: "Node") -> None:
        """Raise what ``Trust.admit`` raises."""
        self.trust.admit(other.trust.hello(self.key.id, LINK, "test", time.time()), other.key.id, LINK, time.time())


async def test_at_every_step_of_a_rotation_all_nodes_admit_and_find_each_other(tmp_path: Path) -> None:
    old, new = (Authority(node_keys.new_authority_seed()) for _ in range(2))
    steps = [CaKeys(old), CaKeys(old, new), CaKeys(new, old), CaKeys(new)]
    nodes = [Node(role, tmp_path, steps[0]) for role in (Role.GATEWAY, Role.WORKER, Role.METRICS, Role.AUTH)]
    for keys in steps[1:]:
        for node in nodes:
            node.renew(keys)
            for one, other in itertools.permutations(nodes, 2):
                one.lets_in(other)
                assert {*one.trust.topics} & {*other.trust.topics}, "they have a meeting place in common"
    for node in nodes:
        assert node.trust.authorities == (node_keys.authority_of(node_keys.raw_of(new.id)),)
    late = Node(Role.WORKER, tmp_path, steps[0])
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        nodes[0].lets_in(late)


async def test_a_key_that_no_trusted_key_named_is_rejected_from_anyone(tmp_path: Path) -> None:
    old, stranger = (Authority(node_keys.new_authority_seed()) for _ in range(2))
    node = Node(Role.WORKER, tmp_path, CaKeys(old))
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        node.renew(CaKeys(stranger))
    assert node.trust.authorities == (old.id,)
