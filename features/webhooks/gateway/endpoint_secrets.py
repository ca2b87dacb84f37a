"""Makes and seals the secrets that sign webhooks. Each is bound to its tenant and endpoint."""

import base64
import secrets
from dataclasses import dataclass
from uuid import UUID

from services.gateway.facts import tenant_encryption
from shared.types import TenantId

_BYTES = 32


def new_secret() -> str:
    """Return one as Standard Webhooks writes it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_BYTES)).decode("ascii")


@dataclass(frozen=True, slots=True)
class EndpointSecrets:
    #: PROMPT_HASH_SECRET.
    key: str

    def seal(self, secret: str, tenant: TenantId, endpoint: UUID) -> bytes:
        return tenant_encryption.seal(secret.encode(), tenant, f"webhook/{endpoint}", self.key, compression=0)

    def unseal(self, sealed: bytes, tenant: TenantId, endpoint: UUID) -> str | None:
        """Return None if it was sealed for another endpoint, or with another key."""
        found = tenant_encryption.unseal(sealed, tenant, f"webhook/{endpoint}", self.key)
        return None if found is None else found.decode()

    def hint(self, sealed: bytes, tenant: TenantId, endpoint: UUID) -> str:
        found = self.unseal(sealed, tenant, endpoint)
        return "unreadable: rotate it" if found is None else f"whsec_…{found[-5:-1]}"
