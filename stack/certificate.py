"""Find the name in the user's TLS certificate under which this machine is reached.

web calls the gateway over HTTPS and checks its certificate, so it must use a name that the certificate contains.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from shared import errors


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    #: For URLs that are used on this machine.
    host: str
    self_signed: bool


def read(path: Path) -> TlsCertificate:
    """Raises BadSettings if the file is not a certificate."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise errors.BadSettings(f"TLS_CERT_FILE: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise errors.BadSettings(
            f"TLS_CERT_FILE: {path} is not a certificate in PEM form", hint="it begins with BEGIN CERTIFICATE"
        ) from error
    return TlsCertificate(choose_host(_names(found)), found.issuer == found.subject)


def choose_host(names: list[str]) -> str:
    """Return loopback if the certificate contains it, else its first name without a wildcard. Pure."""
    for loopback in ("127.0.0.1", "localhost"):
        if loopback in names:
            return loopback
    return next((name for name in names if "*" not in name), "127.0.0.1")


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(found, x509.SubjectAlternativeName)
    return [str(address) for address in found.get_values_for_type(x509.IPAddress)] + found.get_values_for_type(x509.DNSName)
