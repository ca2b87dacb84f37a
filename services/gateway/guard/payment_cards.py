"""Numbers of payment cards: prefixes and lengths of their issuers, and the check digit. Pure."""

from stdnum import luhn

MIN, MAX = 13, 19

#: First digits from, to, and the lengths that are in use.
_ISSUERS: tuple[tuple[str, str, frozenset[int]], ...] = (
    ("4", "4", frozenset({13, 16, 19})),  # Visa
    ("51", "55", frozenset({16})),  # Mastercard
    ("2221", "2720", frozenset({16})),
    ("34", "34", frozenset({15})),  # American Express
    ("37", "37", frozenset({15})),
    ("300", "305", frozenset({14, 16})),  # Diners Club
    ("3095", "3095", frozenset({14, 16})),
    ("36", "36", frozenset({14, 16})),
    ("38", "39", frozenset({14, 16})),
    ("6011", "6011", frozenset({16, 19})),  # Discover
    ("644", "649", frozenset({16, 19})),
    ("65", "65", frozenset({16, 19})),
    ("3528", "3589", frozenset({16, 19})),  # JCB
    ("62", "62", frozenset({16, 17, 18, 19})),  # UnionPay
    ("5018", "5018", frozenset({13, 16, 19})),  # Maestro
    ("5020", "5020", frozenset({13, 16, 19})),
    ("5038", "5038", frozenset({13, 16, 19})),
    ("5893", "5893", frozenset({13, 16, 19})),
    ("6304", "6304", frozenset({13, 16, 19})),
    ("6759", "6759", frozenset({13, 16, 19})),
    ("6761", "6763", frozenset({13, 16, 19})),
    ("2200", "2204", frozenset({16, 19})),  # Mir
)  # fmt: skip


#: First digits -> lengths.
_LENGTHS = {str(prefix): lengths for low, high, lengths in _ISSUERS for prefix in range(int(low), int(high) + 1)}
FIRST_DIGITS = frozenset(prefix[0] for prefix in _LENGTHS)


def is_card(digits: str) -> bool:
    for size in (1, 2, 3, 4):
        if len(digits) in _LENGTHS.get(digits[:size], ()):
            return bool(luhn.is_valid(digits))
    return False
