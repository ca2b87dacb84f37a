"""Seals the results of lines for their tenants, bound to their job and line. Pure."""

from uuid import UUID

from services.gateway.facts import tenant_encryption
from shared import errors
from shared.types import TenantId


def seal(plain: bytes, tenant: TenantId, job: UUID, line: int, secret: str) -> bytes:
    return tenant_encryption.seal(plain, tenant, _key(job, line), secret)


def unseal(sealed: bytes, tenant: TenantId, job: UUID, line: int, secret: str) -> bytes:
    """Raises FileDamaged."""
    plain = tenant_encryption.unseal(sealed, tenant, _key(job, line), secret)
    if plain is None:
        raise errors.FileDamaged(f"the result of line {line + 1} isn't what was stored", hint="run the line again")
    return plain


def _key(job: UUID, line: int) -> str:
    return f"job:{job}:{line}"
