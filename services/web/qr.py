"""QR codes (ISO/IEC 18004): text in byte mode, error correction level M, versions 1 to 10. Pure.

Only as much of the standard as the seed of an authenticator app needs: about 200 letters on a screen, which is no torn paper.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

#: Light modules that must stand around it.
QUIET = 4

Matrix = tuple[tuple[bool, ...], ...]
_Grid = list[list[bool]]


@dataclass(frozen=True, slots=True)
class _Version:
    number: int
    #: The middles of the alignment patterns, in both directions.
    alignment: tuple[int, ...]
    #: Of each block; they differ by at most one codeword.
    data: tuple[int, ...]
    #: Codewords for correction in each block.
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
#: Bytes of the longest text.
LONGEST = sum(_VERSIONS[-1].data) - 3

#: §7.8.2; a module is turned where it is true for its row and column.
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
#: What a finder pattern looks like from the side, with the light before or behind it.
_LIKE_A_FINDER = ((True, False, True, True, True, False, True), (False,) * 4)


def encode(text: str) -> Matrix:
    """The modules, dark ones true, without the light frame. Raises ValueError for a text of more than ``LONGEST`` bytes."""
    content = text.encode()
    version = next((each for each in _VERSIONS if len(content) * 8 + 4 + each.length_bits <= sum(each.data) * 8), None)
    if version is None:
        raise ValueError(f"{len(content)} bytes do not fit into a code for {LONGEST}")
    drawing = _patterns(version)
    _fill(drawing, _codewords(content, version))
    masked = [_masked(drawing, mask) for mask in range(len(_MASKS))]
    return min(masked, key=_penalty)


def svg_path(matrix: Matrix) -> str:
    """The dark modules as the `d` of a path, one unit each, inside the light frame."""
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
    """§7.5 and §7.6: data of all blocks in turns, then their correction in turns."""
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
    """Reed-Solomon: the remainder by the polynomial with the roots 2⁰ … 2^(count-1)."""
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
    """In GF(256) by x⁸ + x⁴ + x³ + x² + 1."""
    product = 0
    while other:
        product ^= one * (other & 1)
        one = one << 1 ^ 0x11D * (one >> 7)
        other >>= 1
    return product


# --- modules ---------------------------------------------------------------------------------------------------------


class _Drawing:
    """Modules that stand already, and which those are."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.dark: _Grid = [[False] * size for _ in range(size)]
        self.taken: _Grid = [[False] * size for _ in range(size)]

    def put(self, row: int, column: int, is_dark: bool) -> None:
        """What lies outside is left out."""
        if 0 <= row < self.size and 0 <= column < self.size:
            self.dark[row][column], self.taken[row][column] = is_dark, True

    def put_square(self, row: int, column: int, reach: int, light_rings: tuple[int, ...]) -> None:
        """Rings around a middle, of which some are light."""
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                self.put(row + down, column + right, max(abs(down), abs(right)) not in light_rings)


def _patterns(version: _Version) -> _Drawing:
    """What every code of this version has."""
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
        # Their bits follow with the mask; the last module beside them is always dark.
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
    """Where bit ``number`` of the format stands, the lowest being 0; §7.9.1."""
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
    """Of a BCH code: the remainder, of ``count`` bits."""
    remainder = value << count
    while remainder.bit_length() > count:
        remainder ^= generator << remainder.bit_length() - count - 1
    return remainder


def format_bits(mask: int) -> int:
    """§7.9: level M, which is 0, and the mask."""
    return (mask << 10 | _check_bits(mask, 10, 0x537)) ^ 0x5412


def _fill(drawing: _Drawing, codewords: bytes) -> None:
    """§7.7.3: in columns of two from the right, up and down in turns; what remains stays light."""
    bits = (bool(byte >> place & 1) for byte in codewords for place in range(7, -1, -1))
    for row, column in _free_places(drawing.taken):
        drawing.dark[row][column] = next(bits, False)


def _free_places(taken: _Grid) -> Iterator[tuple[int, int]]:
    size = len(taken)
    # Column 6 is the timing pattern's, and in no pair.
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
    """§7.8.3: the more a code has of what confuses a reader, the worse."""
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
    # Every whole 5 % away from a half.
    unbalance = abs(20 * dark - 10 * size * size) // (size * size)
    return runs + 3 * squares + 40 * finders + 10 * unbalance


def _runs(line: Sequence[bool]) -> Iterator[int]:
    return (len(list(run)) for _, run in groupby(line))
