"""Signing keys of a provider, one for each algorithm, and tokens signed with them, valid or not."""

import json
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


@dataclass(frozen=True)
class Key:
    kid: str
    algorithm: str
    private: Any

    def jwk(self, *, private: bool = False, **changed: Any) -> dict[str, Any]:
        """Return the JWK, without the private half unless asked for. A member that is changed to None is left out."""
        key = self.private if private else self.private.public_key()
        way: Any = {"RS": RSAAlgorithm, "PS": RSAAlgorithm, "ES": ECAlgorithm, "Ed": OKPAlgorithm}[self.algorithm[:2]]
        made = way.to_jwk(key, as_dict=True)
        made.pop("key_ops", None)
        return {name: value for name, value in {**made, "kid": self.kid, "alg": self.algorithm, "use": "sig", **changed}.items() if value}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        # jwt.encode would refuse claims of a wrong form.
        return jwt.PyJWS().encode(json.dumps(claims).encode(), self.private, algorithm=self.algorithm, headers={"kid": self.kid, **header})


def make(algorithm: str, kid: str = "") -> Key:
    private: Any
    if algorithm in ("RS256", "PS256"):
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        private = Ed25519PrivateKey.generate()
    return Key(kid or f"key-{algorithm}", algorithm, private)
