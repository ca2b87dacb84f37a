"""Decides whether a model may be loaded, by the keys that signed its version. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from shared import errors
from shared.config_documents import TrustDocument, TrustMode, is_pattern
from shared.models.manifest import Version

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

#: By the names that they are for.
TrustRules = Mapping[str, TrustDocument]


class Distrust(StrEnum):
    #: Files from elsewhere, or other files than the manifest names: nobody can have signed them.
    NO_VERSION = "no_version"
    UNSIGNED = "unsigned"
    #: Signed, but by no key of the rule.
    OTHER_KEY = "other_key"
    #: The signature is for other files.
    OTHER_FILES = "other_files"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class LoadableModel:
    #: All that it is served under.
    names: tuple[str, ...]
    #: None for a model that is none.
    version: Version | None
    signatures: Collection[bytes] = ()
    #: The SHA-256 of each file that is to be loaded, in hex, as far as they are known.
    hashes: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model may be loaded."""

    #: None: it may.
    cause: Distrust | None = None
    #: For people.
    reason: str = ""
    #: Otherwise, it is loaded with a warning.
    is_refused: bool = False


TRUSTED = Verdict()


def find_rules(rules: TrustRules, names: Iterable[str]) -> dict[str, TrustDocument]:
    """Return the rule for each name of a model, the longest that matches; `llama3@7` has those of `llama3`, too."""
    found = dict[str, TrustDocument]()
    for name in names:
        forms = (name, name.partition("@")[0])
        matching = [rule for rule in rules if rule in forms or (is_pattern(rule) and name.startswith(rule[:-1]))]
        if matching:
            best = max(matching, key=lambda rule: (not is_pattern(rule), len(rule)))
            found[best] = rules[best]
    return found


def judge(rules: TrustRules, whose: str, model: LoadableModel) -> Verdict:
    """Return the strictest verdict of the rules. ``whose``: where they stand, for people."""
    verdicts = [TRUSTED]
    for pattern, rule in find_rules(rules, model.names).items():
        if rule.mode is not TrustMode.OFF and (found := _find_distrust(rule, model)) is not None:
            reason = f"{found[1]}; {whose} for {pattern} wants a signature by one of its {len(rule.keys)} keys"
            verdicts.append(Verdict(found[0], reason, rule.mode is TrustMode.ENFORCE))
    return strictest(verdicts)


def strictest(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: (verdict.is_refused, verdict.cause is not None))


def _find_distrust(rule: TrustDocument, model: LoadableModel) -> tuple[Distrust, str] | None:
    version = model.version
    if version is None or not {f"sha256:{each}" for each in model.hashes} <= {file.digest for file in version.files}:
        return Distrust.NO_VERSION, "its files are no version of the mesh, so nobody can have signed them"
    if not model.signatures:
        return Distrust.UNSIGNED, "nobody has signed it"
    from shared.models import trust_bundle  # noqa: PLC0415 - 15 MB of cryptography, which a worker without models of its own has not

    keys, worst = list(_read_keys(rule)), (Distrust.OTHER_KEY, "no trusted key has signed it")
    for data in model.signatures:
        try:
            signature = trust_bundle.read(data)
        except errors.BadRequest:
            continue  # as if nobody had signed
        if any(map(signature.is_by, keys)):
            if signature.covers(version):
                return None
            worst = Distrust.OTHER_FILES, "its signature is for other files"
    return worst


def _read_keys(rule: TrustDocument) -> Iterator["EllipticCurvePublicKey"]:
    from shared.models import trust_bundle  # noqa: PLC0415 - see above

    for key in rule.keys:
        # The configuration has checked it.
        with suppress(errors.BadRequest):
            yield trust_bundle.read_public_key(key)
