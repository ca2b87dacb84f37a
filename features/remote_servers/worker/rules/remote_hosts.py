"""Decides which servers administrators may add, from REMOTE_MODEL_HOSTS. Pure."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from yarl import URL

from shared import addresses, errors


@dataclass(frozen=True, slots=True)
class RemoteHosts:
    """Names, addresses and patterns such as ``*.example.org``. A pattern allows public addresses only: whoever has a name there could
    let it lead anywhere."""

    allowed: tuple[str, ...]

    def check(self, url: str) -> None:
        """Raises NotAllowed unless the setting has the URL's host, and for an address to which no connection may be made."""
        host = _host_of(url)
        is_address = addresses.parse(host) is not None
        if is_address and addresses.is_forbidden(host):
            raise errors.NotAllowed(self.mistake(url, host), hint="use an address of the server itself")
        if not any(fnmatchcase(host, pattern.lower()) for pattern in self.allowed):
            raise errors.NotAllowed(f"REMOTE_MODEL_HOSTS of the worker doesn't have the host {host[:100]}", hint=self._change(host))
        if is_address and (why := self.mistake(url, host)):
            raise errors.NotAllowed(why, hint=self._change(host))

    def is_named(self, url: str) -> bool:
        """Return whether the setting has the host itself."""
        return _host_of(url) in map(str.lower, self.allowed)

    def mistake(self, url: str, address: str) -> str:
        """Return why no connection may be made to the address of the URL's host; empty if it may."""
        if addresses.is_forbidden(address):
            return f"the address {address} is never allowed: it is link-local, or has a machine's own credentials"
        if not addresses.is_public(address) and not self.is_named(url):
            return f"the address {address} is private, and REMOTE_MODEL_HOSTS doesn't name the host itself"
        return ""

    def _change(self, host: str) -> str:
        return f"restart the worker with REMOTE_MODEL_HOSTS={','.join((*self.allowed, host))}"


def _host_of(url: str) -> str:
    host = (URL(url).host or "").rstrip(".").lower()
    found = addresses.parse(host)
    return host if found is None else str(found)
