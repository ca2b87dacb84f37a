"""Sign with the mesh CA's key: certificates, the revocation list, the succession of keys, topic secrets. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared import errors
from shared.api.membership import TopicSecret
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.protocol import topics
from shared.types import AuthorityId, NodeId

#: After a change of epoch, nodes also get the previous secret for this long, so that early and late ones meet.
OVERLAP = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class MeshState:
    """What the revocation list is made from."""

    number: int
    epoch: int
    epoch_changed_at: datetime | None
    revoked: tuple[NodeId, ...]


class CaKeys:
    """The signing key, and the other key that nodes trust while one replaces the other."""

    def __init__(self, current: node_keys.Authority, other: node_keys.Authority | None = None) -> None:
        """Raises BadSettings if both are the same key."""
        if other is not None and other.id == current.id:
            raise errors.BadSettings(
                "MESH_CA_NEXT_KEY_FILE holds the same key as MESH_CA_KEY_FILE", hint="leave it out, or create a new key"
            )
        self._current = current
        self._other = other

    @property
    def public(self) -> AuthorityId:
        return self._current.id

    @property
    def authorities(self) -> tuple[AuthorityId, ...]:
        return (self._current.id,) if self._other is None else (self._current.id, self._other.id)

    @property
    def succession(self) -> bytes:
        """Return the current key's statement about the other one; empty without one."""
        return b"" if self._other is None else certificates.name_successor(self._current, self._other.id)

    def certify(self, subject: Subject, now: float) -> bytes:
        return certificates.issue(self._current, subject, now)

    def sign_list(self, state: MeshState, now: float) -> bytes:
        return certificates.issue_list(self._current, state.number, state.epoch, state.revoked, now)

    def topics(self, state: MeshState, now: float) -> tuple[TopicSecret, ...]:
        """Return the current epoch first, but never the next one: a node that is revoked now would know it."""
        found = [self._secret(self._current, state.epoch)]
        changed_at = state.epoch_changed_at
        if changed_at is not None and datetime.fromtimestamp(now, UTC) < changed_at + OVERLAP:
            found.append(self._secret(self._current, state.epoch - 1))
        if self._other is not None:
            # While some nodes know one key and some the other, they meet under the topics of both.
            found.append(self._secret(self._other, state.epoch))
        return tuple(found)

    @staticmethod
    def _secret(authority: node_keys.Authority, epoch: int) -> TopicSecret:
        return TopicSecret(epoch, topics.epoch_secret(authority.raw_seed, epoch))
