"""LAN: serve the machines of this network, which have no public name for this one.

Gateway, web and the DHT nodes listen on this machine's address, with a certificate made for it. Other machines trust it by its key.
"""

import socket
from collections.abc import Mapping

from shared import addresses, errors, outward_address
from stack.settings import FIND_ADDRESS
from stack.stack_home import StackHome

#: What LAN sets.
SETTINGS = ("BIND_HOST", "DHT_HOST", "TLS_CERT_FILE", "TLS_KEY_FILE")


def refuse_both(recorded: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Raise BadSettings if the user set what LAN sets. ``recorded`` are the settings saved before."""
    given = environment if recorded.get("LAN") else {**recorded, **environment}
    if both := [name for name in SETTINGS if given.get(name)]:
        remove = " ".join(f"{name}=" for name in both)
        raise errors.BadSettings(f"LAN sets {', '.join(both)} itself", hint=f"remove yours ({remove} make up), or LAN (LAN= make up)")


def find_address(wanted: str) -> str:
    """Return this machine's address for LAN, which is 1 or an address. Sends nothing. Raises BadSettings."""
    choose = "choose one that `ip -4 address` lists (LAN=192.168.1.20 make up), or turn LAN off (LAN= make up)"
    if wanted != FIND_ADDRESS:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((wanted, 0))
            except OSError as error:
                raise errors.BadSettings(f"LAN={wanted}: this machine has no address {wanted}", hint=choose) from error
        return wanted
    found = outward_address.find()
    if found is None:
        raise errors.BadSettings(f"LAN={wanted}: this machine has no default route", hint=choose)
    if addresses.is_public(found):
        raise errors.BadSettings(f"LAN=1: this machine's address {found} is in the internet, not in a LAN", hint=choose)
    return found


def ensure(home: StackHome, address: str) -> dict[str, str]:
    """Ensure that the certificate fits, and return the settings. Raises BadSettings."""
    from stack.network import certificate  # imports cryptography

    files = certificate.ensure_own(home.secrets / "lan_certificate.pem", home.secrets / "lan_key.pem", address)
    return dict(zip(SETTINGS, (address, address, *map(str, files)), strict=True))
