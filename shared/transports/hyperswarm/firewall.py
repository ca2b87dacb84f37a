"""Who may connect to a swarm."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Firewall:
    """Who may connect, by public key. Enforced by the sidecar, before a stranger learns anything about us."""

    denied: frozenset[bytes] = frozenset()
    allowed: frozenset[bytes] | None = None

    def refuses(self, key: bytes) -> bool:
        return key in self.denied or (self.allowed is not None and key not in self.allowed)

    def admits_more_than(self, other: "Firewall") -> bool:
        if other.denied - self.denied:
            return True
        return other.allowed is not None and (self.allowed is None or bool(self.allowed - other.allowed))

    def parameters(self) -> dict[str, object]:
        allowed = None if self.allowed is None else [key.hex() for key in self.allowed]
        return {"denied": [key.hex() for key in self.denied], "allowed": allowed}
