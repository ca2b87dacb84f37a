"""The reader here takes a code apart by the standard's own rules, with tables of its own; the vectors are the standard's examples."""

import re

import pytest

from services.web import qr
from services.web.qr import Matrix

URI = "otpauth://totp/aimesh%20test:alice?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&issuer=aimesh%20test&algorithm=SHA1&digits=6&period=30"
#: Version -> bytes that it holds at level M, of table 7.
CAPACITY = {1: 14, 2: 26, 3: 42, 4: 62, 5: 84, 6: 106, 7: 122, 8: 152, 9: 180, 10: 213}
#: Version -> (blocks, codewords for correction in each), of table 9.
BLOCKS = {1: (1, 10), 2: (1, 16), 3: (1, 26), 4: (2, 18), 5: (2, 24), 6: (4, 16), 7: (4, 18), 8: (4, 22), 9: (5, 22), 10: (5, 26)}
#: Annex C: what stands for level M and masks 0 to 7.
FORMATS = [
    "101010000010010", "101000100100101", "101111001111100", "101101101001011",
    "100010111111001", "100000011001110", "100111110010111", "100101010100000",
]  # fmt: skip
#: Annex D.
VERSIONS = {7: "000111110010010100", 8: "001000010110111100", 9: "001001101010011001", 10: "001010010011010011"}
#: Table 10, by row and column.
MASKS = [
    lambda i, j: (i + j) % 2, lambda i, j: i % 2, lambda i, j: j % 3, lambda i, j: (i + j) % 3, lambda i, j: (i // 2 + j // 3) % 2,
    lambda i, j: (i * j) % 2 + (i * j) % 3, lambda i, j: ((i * j) % 2 + (i * j) % 3) % 2, lambda i, j: ((i + j) % 2 + (i * j) % 3) % 2,
]  # fmt: skip
FINDER = ["1111111", "1000001", "1011101", "1011101", "1011101", "1000001", "1111111"]


def bits(matrix: Matrix, places: list[tuple[int, int]]) -> str:
    return "".join("1" if matrix[row][column] else "0" for row, column in places)


def read(matrix: Matrix) -> str:
    """The text. Asserts every part that a code of this size must have."""
    size = len(matrix)
    version = (size - 17) // 4
    for top, left in ((0, 0), (0, size - 7), (size - 7, 0)):
        assert [bits(matrix, [(top + row, left + column) for column in range(7)]) for row in range(7)] == FINDER
    mask = FORMATS.index(
        bits(matrix, [*((8, column) for column in (0, 1, 2, 3, 4, 5, 7, 8)), (7, 8), *((row, 8) for row in range(5, -1, -1))])
    )
    second = bits(matrix, [*((row, 8) for row in range(size - 1, size - 8, -1)), *((8, column) for column in range(size - 8, size))])
    assert second == FORMATS[mask]
    assert matrix[size - 8][8]
    if version >= 7:
        places = [(row, column) for row in range(5, -1, -1) for column in range(size - 9, size - 12, -1)]
        assert bits(matrix, places) == VERSIONS[version]
        assert bits(matrix, [(column, row) for row, column in places]) == VERSIONS[version]
    stream = "".join("1" if matrix[row][column] != (MASKS[mask](row, column) == 0) else "0" for row, column in data_places(size, version))
    return text_of([int(stream[place : place + 8], 2) for place in range(0, len(stream) - 7, 8)], version)


def data_places(size: int, version: int) -> list[tuple[int, int]]:
    """In the order of figure 13: two columns at a time from the right, up and down in turns."""
    middles = {1: []}.get(version, [6, *ALIGNED.get(version, []), size - 7])

    def is_function(row: int, column: int) -> bool:
        corner = (row < 9 and column < 9) or (row < 9 and column >= size - 8) or (row >= size - 8 and column < 9)
        versions = version >= 7 and ((row < 6 and column >= size - 11) or (column < 6 and row >= size - 11))
        aligned = any(
            abs(row - i) <= 2 and abs(column - j) <= 2
            for i in middles for j in middles if (i, j) not in ((6, 6), (6, size - 7), (size - 7, 6))
        )  # fmt: skip
        return corner or versions or aligned or row == 6 or column == 6

    found, upwards, column = [], True, size - 1
    while column > 0:
        column -= column == 6
        for row in range(size - 1, -1, -1) if upwards else range(size):
            found += [(row, each) for each in (column, column - 1) if not is_function(row, each)]
        column, upwards = column - 2, not upwards
    return found


#: Annex E: between the first and the last.
ALIGNED = {7: [22], 8: [24], 9: [26], 10: [28]}


def text_of(codewords: list[int], version: int) -> str:
    blocks, correction = BLOCKS[version]
    data_length = len(codewords) - blocks * correction
    short, longer = divmod(data_length, blocks)
    lengths = [short + (block >= blocks - longer) for block in range(blocks)]
    rows: list[list[int]] = [[] for _ in range(blocks)]
    given = iter(codewords)
    for place in range(max(lengths)):
        for block in range(blocks):
            if place < lengths[block]:
                rows[block].append(next(given))
    data = [word for row in rows for word in row]
    for _ in range(correction):
        for row in rows:
            row.append(next(given))
    for row in rows:
        # A codeword is right when the polynomial that it is has every root of the generator.
        assert [evaluate(row, power(root)) for root in range(correction)] == [0] * correction
    stream = "".join(f"{word:08b}" for word in data)
    counted = 16 if version == 10 else 8
    assert stream[:4] == "0100"
    length = int(stream[4 : 4 + counted], 2)
    end = 4 + counted + 8 * length
    content = bytes(int(stream[place : place + 8], 2) for place in range(4 + counted, end, 8))
    padding = stream[end + (-(end + min(4, len(stream) - end)) % 8) + min(4, len(stream) - end) :]
    assert padding == ("1110110000010001" * 200)[: len(padding)]
    return content.decode()


def times(one: int, other: int) -> int:
    product = 0
    for place in range(8):
        if other >> place & 1:
            product ^= one << place
    for place in range(14, 7, -1):
        if product >> place & 1:
            product ^= 0x11D << place - 8
    return product


def power(exponent: int) -> int:
    value = 1
    for _ in range(exponent):
        value = times(value, 2)
    return value


def evaluate(polynomial: list[int], at: int) -> int:
    value = 0
    for factor in polynomial:
        value = times(value, at) ^ factor
    return value


@pytest.mark.parametrize("version", CAPACITY)
@pytest.mark.parametrize("spare", [0, 1, 5])
def test_a_code_of_every_size_reads_as_what_was_written(version: int, spare: int) -> None:
    text = ("aimesh?" * 40)[: CAPACITY[version] - spare]
    matrix = qr.encode(text)
    assert len(matrix) == 17 + 4 * version
    assert read(matrix) == text


def test_a_seed_reads_as_it_is() -> None:
    assert read(qr.encode(URI)) == URI
    assert read(qr.encode("Grüße")) == "Grüße"
    assert read(qr.encode("")) == ""


def test_a_text_that_is_too_long_is_refused() -> None:
    assert qr.LONGEST == 213
    with pytest.raises(ValueError, match="214 bytes"):
        qr.encode("x" * 214)


def test_corrections_are_those_of_the_standards_example() -> None:
    # ISO/IEC 18004, annex I: the symbol of version 1-M for the digits 01234567.
    data = bytes.fromhex("10200C566180EC11EC11EC11EC11EC11")
    assert qr.correction(data, 10) == bytes.fromhex("A524D4C1ED36C7872C55")


@pytest.mark.parametrize("mask", range(8))
def test_formats_are_those_of_annex_c(mask: int) -> None:
    assert f"{qr.format_bits(mask):015b}" == FORMATS[mask]


def test_the_path_draws_each_dark_module_once_inside_a_light_frame() -> None:
    matrix = qr.encode("x")
    drawn = set()
    for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", qr.svg_path(matrix)):
        drawn |= {(int(y), column) for column in range(int(x), int(x) + int(width))}
    assert drawn == {(row + 4, column + 4) for row, line in enumerate(matrix) for column, is_dark in enumerate(line) if is_dark}
