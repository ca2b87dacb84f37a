"""Which models may be loaded, by who has signed them."""

import pytest

from shared.config_documents import TrustDocument, TrustMode
from shared.models import trust_rules
from shared.models.manifest import Version
from shared.models.trust_rules import TRUSTED, Distrust, LoadableModel, TrustRules, Verdict
from tests.shared.models.publishers import FILES, Publisher, named, version_of

VERSION = version_of()
MINE, THEIRS = Publisher(), Publisher()
SIGNED = (MINE.sign(VERSION.digest),)


def rule(mode: TrustMode = TrustMode.ENFORCE, *publishers: Publisher) -> TrustDocument:
    return TrustDocument(mode=mode, keys=tuple(each.public for each in publishers or (MINE,)))


RULES = {"*": rule(TrustMode.WARN), "llama*": rule(), "llama3": rule(TrustMode.OFF), "llama-guard*": rule(TrustMode.ENFORCE, THEIRS)}


def judge(rules: TrustRules, *names: str, version: Version | None = VERSION, signatures: tuple[bytes, ...] = SIGNED) -> Verdict:
    return trust_rules.judge(rules, "the mesh's rule", LoadableModel(names, version, signatures))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["qwen"], {"*"}),
        (["llama2@7"], {"llama*"}),
        (["llama3"], {"llama3"}),
        (["llama3@2"], {"llama3"}),
        (["llama33"], {"llama*"}),
        (["llama-guard-2@1"], {"llama-guard*"}),
        # Its aliases count, too: else another name would be a way around a rule.
        (["llama3", "qwen", "llama2"], {"llama3", "*", "llama*"}),
    ],
)
def test_the_longest_rule_counts_for_each_name(names: list[str], found: set[str]) -> None:
    assert trust_rules.find_rules(RULES, names).keys() == found
    assert trust_rules.find_rules({}, names) == {}


@pytest.mark.parametrize(
    ("version", "signatures", "cause"),
    [
        (VERSION, SIGNED, None),
        (VERSION, (b"garbage", THEIRS.sign(VERSION.digest), *SIGNED), None),
        (None, SIGNED, Distrust.NO_VERSION),
        (VERSION, (), Distrust.UNSIGNED),
        (VERSION, (THEIRS.sign(VERSION.digest), b"[" * 50_000), Distrust.OTHER_KEY),
        (version_of({"model.gguf": b"altered"}), SIGNED, Distrust.OTHER_FILES),
    ],
)
@pytest.mark.parametrize("mode", TrustMode)
def test_a_rule_wants_a_signature_by_one_of_its_keys(
    version: Version | None, signatures: tuple[bytes, ...], cause: Distrust | None, mode: TrustMode
) -> None:
    verdict = judge({"llama*": rule(mode)}, "llama3@1", version=version, signatures=signatures)
    if cause is None or mode is TrustMode.OFF:
        assert verdict == TRUSTED
    else:
        assert (verdict.cause, verdict.is_refused) == (cause, mode is TrustMode.ENFORCE)
        assert verdict.reason.endswith("; the mesh's rule for llama* wants a signature by one of its 1 keys")


def test_the_strictest_rule_of_all_names_decides() -> None:
    verdict = judge(RULES, "qwen", "llama-guard-2")
    assert (verdict.cause, verdict.is_refused) == (Distrust.OTHER_KEY, True)
    assert judge(RULES, "qwen", "llama2") == TRUSTED


def test_a_rule_without_keys_trusts_nobody() -> None:
    nobody = {"*": TrustDocument(mode=TrustMode.ENFORCE), "llama*": TrustDocument(mode=TrustMode.ENFORCE, keys=("garbage",))}
    for name in ("qwen", "llama3"):
        assert judge(nobody, name).cause is Distrust.OTHER_KEY


@pytest.mark.parametrize(
    ("loaded", "cause"),
    [(["model.gguf"], None), (["model.gguf", "mmproj.gguf"], None), (["model.gguf", "altered.gguf"], Distrust.NO_VERSION)],
)
def test_the_files_that_are_loaded_must_be_those_of_the_version(loaded: list[str], cause: Distrust | None) -> None:
    hashes = dict(named({**FILES, "altered.gguf": b"altered"}))
    model = LoadableModel(("llama3@1",), VERSION, SIGNED, tuple(hashes[path] for path in loaded))
    assert trust_rules.judge({"*": rule()}, "the mesh's rule", model).cause is cause
