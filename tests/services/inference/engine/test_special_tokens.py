import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import special_tokens
from services.inference.engine.special_tokens import SpecialTokens

SPECIAL = SpecialTokens(("<|im_start|>", "<|im_end|>", "<s>", "\n"))


@pytest.mark.parametrize(
    ("contents", "parts"),
    [
        pytest.param(["a <b> |c|"], ["a <b> |c|"], id="ordinary text is not touched"),
        pytest.param(["a<|im_end|>b"], ["a<", "|im_end|>b"], id="a special token is cut"),
        pytest.param(["<|im_start|><|im_end|>"], ["<", "|im_start|><", "|im_end|>"], id="so are two"),
        pytest.param(["<\ufdd0|im_end|>"], ["<", "|im_end|>"], id="the mark itself cannot be smuggled in"),
        pytest.param(["a<|im_", "end|>"], ["a<", "|im_end|>"], id="a special token joined from two messages is cut too"),
        pytest.param(["a<|im_ \n", "end|>"], ["a<", "|im_ \nend|>"], id="also when a template would strip the space between"),
        pytest.param(["a\nb"], ["a\nb"], id="a token of one character cannot be cut"),
    ],
)
def test_users_cannot_write_special_tokens(contents: list[str], parts: list[str]) -> None:
    assert SPECIAL.cut("".join(SPECIAL.mark(content) for content in contents)) == parts


def test_long_texts_are_split_before_special_tokens() -> None:
    """llama.cpp takes time quadratic in the number of special tokens in one text."""
    text = "ab<|im_start|><|im_end|>" * 4000
    parts = SPECIAL.cut(text)
    assert "".join(parts) == text
    assert max(part.count("<|im_") for part in parts) <= 513
    assert all(part.startswith("<|im_") for part in parts[1:])
    assert SPECIAL.cut("<s>" * 600) == ["<s>" * 600], "short enough"


@given(st.lists(st.text(alphabet="<|>s/ aim_endtr\n\ufdd0"), max_size=4))
def test_no_part_holds_a_special_token_written_by_a_user(contents: list[str]) -> None:
    parts = SPECIAL.cut("".join(SPECIAL.mark(content) for content in contents))
    assert "".join(parts) == "".join(contents).replace(special_tokens.MARK, "")
    assert not [part for part in parts if "<|im_start|>" in part or "<|im_end|>" in part or "<s>" in part]


def marked_one_by_one(spellings: tuple[str, ...], text: str) -> str:
    """Mark the text like ``mark``, but slowly."""
    text = text.replace(special_tokens.MARK, "")
    ends = text.rstrip()

    def is_spelled(at: int) -> bool:
        rest = ends[at:]
        return any(len(one) > 1 and (text.startswith(one, at) or (bool(rest) and one.startswith(rest))) for one in spellings)

    return "".join(letter + (special_tokens.MARK if is_spelled(at) else "") for at, letter in enumerate(text))


@given(
    spellings=st.lists(st.text(alphabet="<|a(.", min_size=1, max_size=5), max_size=6).map(tuple),
    text=st.text(alphabet="<|a(. \ufdd0", max_size=40),
    searched=st.integers(1, 8),
)
def test_every_special_spelling_is_marked_even_inside_another(spellings: tuple[str, ...], text: str, searched: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(special_tokens, "_SEARCHED_AT_ONCE", searched)
        assert SpecialTokens(spellings).mark(text) == marked_one_by_one(spellings, text)


MAX_TEXT = 900_000
LONG_TEXTS = {
    "angle brackets": "<" * MAX_TEXT,
    "markup": ('<div class="a b"><p>Hello <b>you</b> there</p></div>\n' * 20_000)[:MAX_TEXT],
    "one letter": "a" * MAX_TEXT,
    "English": ("It was the best of times, it was the worst of times. " * 20_000)[:MAX_TEXT],
    "beginnings of special tokens": ("<|reserved_special_token_" * 40_000)[:MAX_TEXT],
    "special tokens": ("<|reserved_special_token_7|>" * 40_000)[:MAX_TEXT],
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_marking_takes_linear_time(kind: str) -> None:
    many = SpecialTokens((*(f"<|reserved_special_token_{number}|>" for number in range(250)), "<|im_start|>", "<|im_end|>"))
    text = LONG_TEXTS[kind]
    began = time.process_time()
    marked = many.mark(text)
    # It takes 0.05 s. Copying the rest of the text at every bracket took 20 to 70 s.
    assert time.process_time() - began < 10
    assert marked.replace(special_tokens.MARK, "") == text
