"""llama.cpp's own reading of our grammars agrees with that of `gbnf_texts`, token by token."""

import ctypes
import random
import time
from collections.abc import Iterator

import llama_cpp.llama_cpp as native
import pytest

from services.inference.models import model_discovery
from services.inference.structured_output import checker_messages, checker_process, schema
from services.inference.structured_output.checker_process import CheckerVocabulary
from tests.services.inference.structured_output import tool_schemas
from tests.services.inference.structured_output.gbnf_texts import drawn, fits, grammar_of


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[CheckerVocabulary]:
    with checker_process.opened(model_discovery.packaged()) as opened:
        assert opened is not None
        yield opened


def is_taken(vocabulary: CheckerVocabulary, grammar: str, text: str) -> bool:
    """Whether llama.cpp lets every token of the text through, and the end behind it."""
    raw = text.encode()
    tokens = (native.llama_token * (len(raw) + 8))()
    count = native.llama_tokenize(vocabulary.pointer, raw, len(raw), tokens, len(tokens), False, False)
    sampler = native.llama_sampler_init_grammar(vocabulary.pointer, grammar.encode(), b"root")
    try:
        for token in [*tokens[:count], native.llama_vocab_eos(vocabulary.pointer)]:
            candidate = (native.llama_token_data * 1)()
            candidate[0].id = token
            array = native.llama_token_data_array(candidate, 1, -1, False)
            native.llama_sampler_apply(sampler, ctypes.byref(array))
            if candidate[0].logit != 0.0:
                return False
            native.llama_sampler_accept(sampler, token)
        return True
    finally:
        native.llama_sampler_free(sampler)


@pytest.mark.parametrize("name", tool_schemas.SCHEMAS)
def test_llama_cpp_accepts_the_same_texts(name: str, vocabulary: CheckerVocabulary) -> None:
    grammar = grammar_of(tool_schemas.SCHEMAS[name])
    for seed in range(15):
        rng = random.Random(seed)
        text = drawn(grammar, rng)
        assert is_taken(vocabulary, grammar, text), text
        at = rng.randrange(len(text))
        changed = text[:at] + rng.choice(' "{}[],:x0ä') + text[at + rng.randint(0, 1) :]
        assert is_taken(vocabulary, grammar, changed) == fits(grammar, changed), changed


def test_step_on_the_longest_enum_is_bounded_without_common_prefixes(vocabulary: CheckerVocabulary) -> None:
    """llama.cpp tries every value on every token there: 0.35 s here, and no later step has so much to try."""
    grammar = grammar_of({"enum": [chr(0x4E00 + n) + "x" for n in range(schema.MOST_ENUM_VALUES)]})
    sampler = native.llama_sampler_init_grammar(vocabulary.pointer, grammar.encode(), b"root")
    try:
        native.llama_sampler_accept(sampler, vocabulary.letters[ord('"')])
        for candidate in vocabulary.everything:
            candidate.logit = 0.0
        array = native.llama_token_data_array(vocabulary.everything, len(vocabulary.everything), -1, False)
        began = time.process_time()
        native.llama_sampler_apply(sampler, ctypes.byref(array))
        assert time.process_time() - began < checker_messages.CPU_SECONDS
        assert any(candidate.logit == 0.0 for candidate in vocabulary.everything)
    finally:
        native.llama_sampler_free(sampler)
