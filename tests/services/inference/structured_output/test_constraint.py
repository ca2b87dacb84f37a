"""What llguidance does with hostile formats, how long it holds the GIL, and what is cached."""

import json
import random
import threading
import time

import numpy as np
import pytest

from services.inference.structured_output import constraint, lark, output_formats
from services.inference.structured_output.constraint import Constraints
from shared import errors
from shared.api.generation import FormatKind, OutputFormat
from tests.services.inference.structured_output import hostile
from tests.services.inference.structured_output.byte_answers import BYTES, END, ByteVocabulary, constraints

#: SECURITY.md, T6.
COMPILE_SECONDS = 2.0
#: The longest time that the engine's loop may be blocked.
STEP_SECONDS = 0.05
STEPS = 60


def _follow(grammar: str) -> float:
    """Generate random text by the grammar, and return the seconds of the longest step."""
    rng, started, longest = random.Random(1), BYTES.start(grammar), 0.0
    for _ in range(STEPS):
        began = time.thread_time()
        masked = started.masked(np.zeros(END + 2, np.float32))
        allowed = [int(token) for token in np.flatnonzero(masked == 0.0)]
        token = rng.choice(allowed or [END])
        if token == END or not started.allows(token):
            break
        started.accept(token)
        longest = max(longest, time.thread_time() - began)
    return longest


def test_hostile_format_is_refused_or_followed_in_time() -> None:
    corpus = hostile.corpus()
    assert len(corpus) >= 300
    refused: dict[str, str] = {}
    slow: dict[str, float] = {}
    for name, wanted in corpus.items():
        began = time.thread_time()
        try:
            grammar = output_formats.grammar_of(wanted)
            BYTES.compile(grammar)
        except errors.BadRequest as error:
            refused[name] = error.message
            continue
        finally:
            if (seconds := time.thread_time() - began) > COMPILE_SECONDS:
                slow[f"compiling {name}"] = seconds
        if (seconds := _follow(grammar)) > STEP_SECONDS:
            slow[f"a step of {name}"] = seconds
    assert slow == {}
    assert not [message for message in refused.values() if len(message) > 500 or not message.startswith(("format", "guided"))]
    for name in ("schema: maxLength 10,000", "schema: an enum of 500 signs", "grammar: 64 parentheses", "grammar: a chain of 400 rules"):
        assert name not in refused


def test_compiling_releases_the_gil() -> None:
    schema = {f"p{n}": {"type": "string", "enum": [f"{n} {m}" for m in range(9)], "maxLength": n} for n in range(100)}
    grammar = output_formats.grammar_of(OutputFormat(FormatKind.JSON_SCHEMA, json.dumps({"type": "object", "properties": schema})))
    gaps, ended = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not ended.is_set():
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    began = time.perf_counter()
    for _ in range(8):
        constraints().compile(grammar)
    seconds = time.perf_counter() - began
    ended.set()
    ticking.join()
    # Compiling all of them takes longer than the other thread is ever blocked.
    assert sorted(gaps)[-5] < min(STEP_SECONDS, seconds / 2)


def test_grammars_are_cached_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "MAX_GRAMMARS", 2)
    cached = constraints()
    first, second, third = (lark.grammar(f'"{text}"') for text in "abc")
    one = cached.compile(first)
    two = cached.compile(second)
    assert cached.compile(first) is one
    cached.compile(third)
    assert cached.compile(first) is one
    assert cached.compile(second) is not two


def test_answers_of_one_grammar_are_independent() -> None:
    grammar = lark.grammar('"ab"')
    one, other = BYTES.start(grammar), BYTES.start(grammar)
    one.accept(ord("a"))
    assert [one.allows(ord("b")), one.allows(ord("a")), other.allows(ord("a"))] == [True, False, True]
    one.accept(ord("b"))
    assert one.allows(END)
    assert not other.allows(END)


@pytest.mark.parametrize(
    ("triggers", "before", "head"),
    [
        pytest.param(("<call>",), "I call <call>", "<call>", id="a word"),
        pytest.param(("<x>", "<call>"), "<call>", "<call>", id="the second of two"),
        pytest.param((r"^\s+to(?!self)(<call>)",), "  to<call>", "<call>", id="a group of a pattern"),
        pytest.param(("ü<call>",), "ü<call>", "ü<call>", id="characters of several bytes"),
        pytest.param(("<call>",), "x" * 1000 + "<call>", "<call>", id="behind a long text"),
    ],
)
def test_grammar_applies_from_its_trigger_on(triggers: tuple[str, ...], before: str, head: str) -> None:
    started = BYTES.start(lark.grammar(f"{lark.literal(head)} /[0-9]+/"), triggers, "tools")
    for token in before.encode():
        assert not started.applies
        started.accept(token)
    assert started.applies
    assert [started.allows(ord("7")), started.allows(ord("x")), started.allows(END)] == [True, False, False]
    started.accept(ord("7"))
    assert started.allows(END)


def test_trigger_may_end_inside_a_token() -> None:
    class Pieces(ByteVocabulary):
        def spelled(self, token: int) -> bytes:
            return b"a<call>1" if token == 1 else super().spelled(token)

    started = Constraints(Pieces()).start(lark.grammar('"<call>12"'), ("<call>",), "tools")
    started.accept(1)
    assert [started.applies, started.allows(ord("2")), started.allows(ord("3"))] == [True, True, False]


def test_text_that_only_looks_like_a_trigger_starts_nothing() -> None:
    started = BYTES.start(lark.grammar('"<call>" "1"'), ("cap",), "tools")
    for token in b"<cap>":
        started.accept(token)
    assert started.applies is False


@pytest.mark.parametrize(("field", "may_be_empty"), [("format", True), ("tools", False)])
def test_answer_with_a_required_call_is_not_empty(field: str, may_be_empty: bool) -> None:
    started = BYTES.start(lark.grammar("/[0-9]*/"), (), field)
    assert started.allows(END) is may_be_empty
    assert (started.masked(np.zeros(END + 2, np.float32))[END] == 0.0) is np.bool_(may_be_empty)
    started.accept(ord("1"))
    assert started.allows(END)


def test_a_vocabulary_may_have_very_long_tokens_or_none() -> None:
    """llguidance would panic, and a panic kills the engine."""

    class LongTokens(ByteVocabulary):
        def spelled(self, token: int) -> bytes:
            return b"x" * 2000 if token == ord("x") else super().spelled(token)

    class NoTokens(ByteVocabulary):
        size = 0
        end_tokens = control_tokens = frozenset()

    started = Constraints(LongTokens()).start(lark.grammar("/.+/"))
    assert [started.allows(ord("x")), started.allows(ord("y"))] == [False, True]
    Constraints(NoTokens())


def test_a_refused_grammar_is_refused_again_with_the_field() -> None:
    for field in ("format", "tools"):
        with pytest.raises(errors.BadRequest, match=f"^{field}: .*unclosed group"):
            BYTES.compile(lark.grammar(lark.regex("(")), field)


def test_a_grammar_that_exceeds_a_limit_ends_its_answer() -> None:
    started = BYTES.start(lark.grammar('"x" a{0,1000}', 'a: b{0,1000} | "q" a', 'b: c{0,1000} | "r" b', 'c: "y" | "u" c'))
    started.accept(ord("x"))
    for _ in range(STEPS):
        started.masked(np.zeros(END + 2, np.float32))
        started.accept(ord("y"))
    assert started.is_too_costly
