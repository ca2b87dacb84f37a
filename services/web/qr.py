"""Encode QR codes (ISO/IEC 18004): byte mode, error correction level M, versions 1 to 10. Pure.

Implements only what authenticator setup needs: about 200 characters on a screen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

#: The width of the quiet zone in modules.
QUIET = 4

Matrix = tuple[tuple[bool, ...], ...]
_Grid = list[list[bool]]


@dataclass(frozen=True, slots=True)
class _Version:
    number: int
    #: The centers of the alignment patterns, in both directions.
    alignment: tuple[int, ...]
    #: Data codewords per block; blocks differ by at most one.
    data: tuple[int, ...]
    #: Error correction codewords per block.
    correction: int

    @property
    def size(self) -> int:
        return 17 + 4 * self.number

    @property
    def length_bits(self) -> int:
        return 8 if self.number < 10 else 16


#: Table 9 and annex E of the standard, level M.
_VERSIONS = (
    _Version(1, (), (16,), 10),
    _Version(2, (6, 18), (28,), 16),
    _Version(3, (6, 22), (44,), 26),
    _Version(4, (6, 26), (32,) * 2, 18),
    _Version(5, (6, 30), (43,) * 2, 24),
    _Version(6, (6, 34), (27,) * 4, 16),
    _Version(7, (6, 22, 38), (31,) * 4, 18),
    _Version(8, (6, 24, 42), (38, 38, 39, 39), 22),
    _Version(9, (6, 26, 46), (36, 36, 36, 37, 37), 22),
    _Version(10, (6, 28, 50), (43, 43, 43, 43, 44), 26),
)
#: The maximum text length in bytes.
LONGEST = sum(_VERSIONS[-1].data) - 3

#: §7.8.2: a mask inverts the modules for which it is true.
_MASKS: tuple[Callable[[int, int], bool], ...] = (
    lambda row, column: (row + column) % 2 == 0,
    lambda row, column: row % 2 == 0,
    lambda row, column: column % 3 == 0,
    lambda row, column: (row + column) % 3 == 0,
    lambda row, column: (row // 2 + column // 3) % 2 == 0,
    lambda row, column: row * column % 2 + row * column % 3 == 0,
    lambda row, column: (row * column % 2 + row * column % 3) % 2 == 0,
    lambda row, column: ((row + column) % 2 + row * column % 3) % 2 == 0,
)
#: The cross section of a finder pattern, with light modules on either side.
_LIKE_A_FINDER = ((True, False, True, True, True, False, True), (False,) * 4)


def encode(text: str) -> Matrix:
    """Return the modules without the quiet zone; dark ones are true. Raises ValueError for a text longer than ``LONGEST`` bytes."""
    content = text.encode()
    version = next((each for each in _VERSIONS if len(content) * 8 + 4 + each.length_bits <= sum(each.data) * 8), None)
    if version is None:
        raise ValueError(f"{len(content)} bytes do not fit into a code for {LONGEST}")
    drawing = _patterns(version)
    _fill(drawing, _codewords(content, version))
    masked = [_masked(drawing, mask) for mask in range(len(_MASKS))]
    return min(masked, key=_penalty)


def svg_path(matrix: Matrix) -> str:
    """Return the dark modules as the `d` of an SVG path, one unit each, with the quiet zone."""
    parts = []
    for y, row in enumerate(matrix, start=QUIET):
        x = QUIET
        for is_dark, run in groupby(row):
            length = len(list(run))
            if is_dark:
                parts.append(f"M{x} {y}h{length}v1h-{length}z")
            x += length
    return "".join(parts)


# --- codewords -------------------------------------------------------------------------------------------------------


def _codewords(content: bytes, version: _Version) -> bytes:
    """Interleave the data codewords of all blocks, then their correction codewords (§7.5, §7.6)."""
    data = _padded(content, version)
    blocks, start = [], 0
    for length in version.data:
        blocks.append(data[start : start + length])
        start += length
    corrections = [correction(block, version.correction) for block in blocks]
    return bytes([*_in_turns(blocks), *_in_turns(corrections)])


def _padded(content: bytes, version: _Version) -> bytes:
    capacity = sum(version.data)
    bits = f"0100{len(content):0{version.length_bits}b}" + "".join(f"{byte:08b}" for byte in content)
    bits += "0" * min(4, capacity * 8 - len(bits))
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return (data + b"\xec\x11" * capacity)[:capacity]


def _in_turns(blocks: Sequence[bytes]) -> Iterator[int]:
    for place in range(max(map(len, blocks))):
        yield from (block[place] for block in blocks if place < len(block))


def correction(block: bytes, count: int) -> bytes:
    """Return the Reed-Solomon codewords: the remainder by the polynomial with the roots 2⁰ … 2^(count-1)."""
    generator = bytearray([1])
    root = 1
    for _ in range(count):
        longer = bytearray([*generator, 0])
        for place, factor in enumerate(generator, start=1):
            longer[place] ^= _multiply(factor, root)
        generator, root = longer, _multiply(root, 2)
    remainder = bytearray(block + bytes(count))
    for place in range(len(block)):
        factor = remainder[place]
        for behind, part in enumerate(generator):
            remainder[place + behind] ^= _multiply(part, factor)
    return bytes(remainder[len(block) :])


def _multiply(one: int, other: int) -> int:
    """Multiply in GF(256) modulo x⁸ + x⁴ + x³ + x² + 1."""
    product = 0
    while other:
        product ^= one * (other & 1)
        one = one << 1 ^ 0x11D * (one >> 7)
        other >>= 1
    return product


# --- modules ---------------------------------------------------------------------------------------------------------


class _Drawing:
    """The modules that are set so far."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.dark: _Grid = [[False] * size for _ in range(size)]
        self.taken: _Grid = [[False] * size for _ in range(size)]

    def put(self, row: int, column: int, is_dark: bool) -> None:
        """Set a module, ignoring positions outside the code."""
        if 0 <= row < self.size and 0 <= column < self.size:
            self.dark[row][column], self.taken[row][column] = is_dark, True

    def put_square(self, row: int, column: int, reach: int, light_rings: tuple[int, ...]) -> None:
        """Draw concentric rings, some of them light."""
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                self.put(row + down, column + right, max(abs(down), abs(right)) not in light_rings)


def _patterns(version: _Version) -> _Drawing:
    """Draw the patterns that every code of this version has."""
    size = version.size
    drawing = _Drawing(size)
    for place in range(size):
        drawing.put(6, place, place % 2 == 0)
        drawing.put(place, 6, place % 2 == 0)
    for row, column in ((3, 3), (3, size - 4), (size - 4, 3)):
        drawing.put_square(row, column, 4, (2, 4))
    for row, column in _alignments(version):
        drawing.put_square(row, column, 2, (1,))
    for number in range(15):
        # The format bits follow with the mask; the module beside them is always dark.
        for row, column in _format_places(number, size):
            drawing.put(row, column, False)
    drawing.put(size - 8, 8, True)
    if version.number >= 7:
        bits = version.number << 12 | _check_bits(version.number, 12, 0x1F25)
        for number in range(18):
            drawing.put(size - 11 + number % 3, number // 3, bool(bits >> number & 1))
            drawing.put(number // 3, size - 11 + number % 3, bool(bits >> number & 1))
    return drawing


def _alignments(version: _Version) -> Iterator[tuple[int, int]]:
    last = version.size - 7
    for row in version.alignment:
        for column in version.alignment:
            if (row, column) not in ((6, 6), (6, last), (last, 6)):
                yield row, column


def _format_places(number: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the positions of format bit ``number``, counted from the lowest (§7.9.1)."""
    if number < 6:
        first = (number, 8)
    elif number < 8:
        first = (number + 1, 8)
    elif number == 8:
        first = (8, 7)
    else:
        first = (8, 14 - number)
    second = (8, size - 1 - number) if number < 8 else (size - 15 + number, 8)
    return first, second


def _check_bits(value: int, count: int, generator: int) -> int:
    """Return the BCH remainder of ``count`` bits."""
    remainder = value << count
    while remainder.bit_length() > count:
        remainder ^= generator << remainder.bit_length() - count - 1
    return remainder


def format_bits(mask: int) -> int:
    """Return the format bits for level M (0) and the mask (§7.9)."""
    return (mask << 10 | _check_bits(mask, 10, 0x537)) ^ 0x5412


def _fill(drawing: _Drawing, codewords: bytes) -> None:
    """Place the bits in two-column strips from the right, alternating up and down (§7.7.3)."""
    bits = (bool(byte >> place & 1) for byte in codewords for place in range(7, -1, -1))
    for row, column in _free_places(drawing.taken):
        drawing.dark[row][column] = next(bits, False)


def _free_places(taken: _Grid) -> Iterator[tuple[int, int]]:
    size = len(taken)
    # Column 6 is the timing pattern and belongs to no pair.
    rights = [*range(size - 1, 6, -2), *range(5, 0, -2)]
    for turn, right in enumerate(rights):
        rows = range(size) if turn % 2 else range(size - 1, -1, -1)
        yield from ((row, column) for row in rows for column in (right, right - 1) if not taken[row][column])


def _masked(drawing: _Drawing, mask: int) -> Matrix:
    turns = _MASKS[mask]
    dark, taken, size = drawing.dark, drawing.taken, drawing.size
    grid = [[dark[row][column] ^ (not taken[row][column] and turns(row, column)) for column in range(size)] for row in range(size)]
    bits = format_bits(mask)
    for number in range(15):
        for row, column in _format_places(number, size):
            grid[row][column] = bool(bits >> number & 1)
    return tuple(map(tuple, grid))


def _penalty(matrix: Matrix) -> int:
    """Return the penalty of a mask: higher means harder to scan (§7.8.3)."""
    size = len(matrix)
    lines = (*matrix, *zip(*matrix, strict=True))
    runs = sum(length - 2 for line in lines for length in _runs(line) if length >= 5)
    squares = sum(
        len({matrix[row][column], matrix[row][column + 1], matrix[row + 1][column], matrix[row + 1][column + 1]}) == 1
        for row in range(size - 1)
        for column in range(size - 1)
    )
    finder, light = _LIKE_A_FINDER
    finders = sum(line[place : place + 11] in (finder + light, light + finder) for line in lines for place in range(size - 10))
    dark = sum(map(sum, matrix))
    # Each full 5 % of deviation from half dark.
    unbalance = abs(20 * dark - 10 * size * size) // (size * size)
    return runs + 3 * squares + 40 * finders + 10 * unbalance


def _runs(line: Sequence[bool]) -> Iterator[int]:
    return (len(list(run)) for _, run in groupby(line))
