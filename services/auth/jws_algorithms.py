"""Read and verify JWS with an explicit list of algorithms and size limits: our access tokens, and the ID tokens of providers."""

from joserfc import jwk, jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwa import JWSAlgModel

#: In base64: enough for an RSA key of 8192 bits.
_MAX_SIGNATURE_LENGTH = 1400


class AllowedAlgorithms(jws.JWSRegistry):
    """``algorithms`` must not contain `none` or HMAC.

    joserfc's own registry would warn about EdDSA, because RFC 9864 renames it to Ed25519. Our tokens and most providers use the old name.
    """

    def __init__(self, *algorithms: str, max_header_length: int, max_payload_length: int, strict_headers: bool = True) -> None:
        super().__init__(algorithms=algorithms, strict_check_header=strict_headers)
        self.max_header_length = max_header_length
        self.max_payload_length = max_payload_length
        self.max_signature_length = _MAX_SIGNATURE_LENGTH

    def get_alg(self, name: str) -> JWSAlgModel:
        if not self.allowed or name not in self.allowed:
            raise UnsupportedAlgorithmError("the algorithm is not allowed here")
        return self.algorithms[name]

    def read(self, token: str) -> jws.CompactSignature:
        """Split a token without verifying it. Raises ValueError for anything but a JWS in compact form."""
        try:
            signature = jws.extract_compact(token.encode(), registry=self)
        except (JoseError, TypeError, RecursionError) as error:
            raise ValueError("not a JWS") from error
        # joserfc accepts a header that is a list with the word `alg` in it.
        if not isinstance(signature.protected, dict):
            raise ValueError("not a JWS")
        return signature

    def verify(self, signature: jws.CompactSignature, key: jwk.Key) -> bool:
        """Return whether ``key`` made the signature, with an allowed algorithm that suits the key."""
        try:
            return jws.validate_compact(signature, key, registry=self)
        except (JoseError, TypeError, ValueError):
            return False
