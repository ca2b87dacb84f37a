"""What the administrator has agreed with the provider: one client of one issuer. Pure."""

from dataclasses import dataclass, field
from pathlib import Path

SCOPES = ("openid", "profile", "email")
GROUPS_CLAIM = "groups"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRegistration:
    #: As the provider writes it, letter by letter.
    issuer: str
    client_id: str
    #: None for a public client.
    client_secret: str | None = field(default=None, repr=False)
    scopes: tuple[str, ...] = SCOPES
    #: The claim with the person's groups; `realm_access.roles` is one inside another.
    groups_claim: str = GROUPS_CLAIM
    #: Who vouches for the provider's certificate; None for the authorities that this machine trusts.
    ca_file: Path | None = None

    @property
    def asked_scopes(self) -> str:
        """Without `openid` it would not be OpenID Connect."""
        return " ".join(self.scopes if "openid" in self.scopes else ("openid", *self.scopes))
