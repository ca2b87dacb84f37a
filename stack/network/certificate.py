"""The TLS certificate of gateway and web: the user's, or our own for the address of this machine in its LAN.

web calls the gateway over HTTPS and checks its certificate, so it must use a name that the certificate contains, and an address on which
the gateway listens.
"""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtensionOID, NameOID

from shared import addresses, errors
from stack import stack_home as homes

#: Machines trust our own certificate itself, so a new one would need a new installation of each.
_VALID = timedelta(days=3650)
#: Clocks of other machines may be behind.
_CLOCKS = timedelta(days=1)
_RENEW = timedelta(days=30)
_UNUSED = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    #: For URLs that are used on this machine; None if it contains no usable name.
    host: str | None
    self_signed: bool
    #: For curl's --pinnedpubkey: base64 of the SHA-256 of the key.
    pin: str


def read(path: Path, listens_on: str) -> TlsCertificate:
    """``listens_on``: the address of gateway and web. Raises BadSettings if the file is not a certificate."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise errors.BadSettings(f"TLS_CERT_FILE: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise errors.BadSettings(
            f"TLS_CERT_FILE: {path} is not a certificate in PEM form", hint="it begins with BEGIN CERTIFICATE"
        ) from error
    pin = base64.b64encode(hashlib.sha256(_encoded(found.public_key())).digest()).decode()
    return TlsCertificate(choose_host(_names(found), listens_on), found.issuer == found.subject, pin)


def choose_host(names: list[str], listens_on: str) -> str | None:
    """Return the name of a certificate under which gateway and web are reached on this machine: their address, else the first name without
    a wildcard that doesn't lead to another address of this machine. Pure."""
    here = ("127.0.0.1", "localhost") if listens_on == "127.0.0.1" else (listens_on,)
    whole = [name for name in names if "*" not in name]
    usable = [name for name in here if name in whole] + [name for name in whole if not addresses.is_loopback(name)]
    return usable[0] if usable else None


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(found, x509.SubjectAlternativeName)
    return [str(address) for address in found.get_values_for_type(x509.IPAddress)] + found.get_values_for_type(x509.DNSName)


def _encoded(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# --- our own --------------------------------------------------------------------------------------------------------------------


def ensure_own(certificate_file: Path, key_file: Path, address: str) -> tuple[Path, Path]:
    """Ensure a certificate of our own for this address. The key stays for ever, and its pin with it. Raises BadSettings."""
    if not key_file.exists():
        made = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        homes.write_private(key_file, made.decode())
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
    except (ValueError, AssertionError) as error:
        hint = "restore it from a backup, or delete it: then other machines must install aimesh again"
        raise errors.BadSettings(f"{key_file} is damaged", hint=hint) from error
    if not _fits(certificate_file, key, address):
        homes.write_private(certificate_file, _sign(key, address).public_bytes(Encoding.PEM).decode())
    return certificate_file, key_file


def _fits(file: Path, key: ec.EllipticCurvePrivateKey, address: str) -> bool:
    try:
        found = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        return False
    is_ours = _encoded(found.public_key()) == _encoded(key.public_key())
    return is_ours and _names(found) == [address] and found.not_valid_after_utc > datetime.now(UTC) + _RENEW


def _sign(key: ec.EllipticCurvePrivateKey, address: str) -> x509.Certificate:
    """Sign a certificate that programs also accept as its own CA file. It is not one of an authority: rustls (in uv) accepts none from a
    server."""
    now, name = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    usage = dict.fromkeys((*_UNUSED, "encipher_only", "decipher_only"), False)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256())
