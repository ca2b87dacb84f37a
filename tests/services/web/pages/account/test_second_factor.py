"""The tests decode the QR code by the rules of ISO/IEC 18004, so they do not trust the library that draws it."""

import re

import pytest

from services.web.pages.account import second_factor

URI = "otpauth://totp/aimesh%20test:alice?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&issuer=aimesh%20test&algorithm=SHA1&digits=6&period=30"
#: Version -> bytes that it holds at level M, of table 7.
CAPACITY = {4: 62, 5: 84, 6: 106, 7: 122, 8: 152, 9: 180, 10: 213}
#: Version -> (blocks, codewords for correction in each), of table 9.
BLOCKS = {4: (2, 18), 5: (2, 24), 6: (4, 16), 7: (4, 18), 8: (4, 22), 9: (5, 22), 10: (5, 26)}
#: Annex C: the format information of level M and masks 0 to 7.
FORMATS = [
    "101010000010010", "101000100100101", "101111001111100", "101101101001011",
    "100010111111001", "100000011001110", "100111110010111", "100101010100000",
]  # fmt: skip
#: Table 10, by row and column.
MASKS = [
    lambda i, j: (i + j) % 2, lambda i, j: i % 2, lambda i, j: j % 3, lambda i, j: (i + j) % 3, lambda i, j: (i // 2 + j // 3) % 2,
    lambda i, j: (i * j) % 2 + (i * j) % 3, lambda i, j: ((i * j) % 2 + (i * j) % 3) % 2, lambda i, j: ((i + j) % 2 + (i * j) % 3) % 2,
]  # fmt: skip
#: Annex E: between the first and the last.
ALIGNED = {7: [22], 8: [24], 9: [26], 10: [28]}
QUIET_ZONE = 4

Matrix = list[list[bool]]


def modules_of(svg: str) -> Matrix:
    """The dark modules inside the quiet zone, which must be light."""
    size = int(re.search(r'viewBox="0 0 (\d+) \1"', svg)[1]) - 2 * QUIET_ZONE
    path = re.search(r'stroke="#000" d="([^"]+)"', svg)[1]
    matrix = [[False] * size for _ in range(size)]
    x, y = 0.0, 0.0
    for command, across, down in re.findall(r"([Mmh])(-?[\d.]+)(?:[ ]?(-?[\d.]+))?", path):
        if command == "h":
            for column in range(int(across)):
                matrix[int(y) - QUIET_ZONE][int(x) + column - QUIET_ZONE] = True
        x, y = (float(across), float(down)) if command == "M" else (x + float(across), y + float(down or 0))
        assert QUIET_ZONE <= x <= size + QUIET_ZONE
        assert QUIET_ZONE <= y < size + QUIET_ZONE
    return matrix


def decode(matrix: Matrix) -> str:
    size = len(matrix)
    version = (size - 17) // 4
    places = [*((8, column) for column in (0, 1, 2, 3, 4, 5, 7, 8)), (7, 8), *((row, 8) for row in range(5, -1, -1))]
    mask = MASKS[FORMATS.index("".join(str(int(matrix[row][column])) for row, column in places))]
    stream = "".join(str(int(matrix[row][column] != (mask(row, column) == 0))) for row, column in data_places(size, version))
    return text_of([int(stream[place : place + 8], 2) for place in range(0, len(stream) - 7, 8)], version)


def data_places(size: int, version: int) -> list[tuple[int, int]]:
    """In the order of figure 13: two columns at a time from the right, up and down in turns."""
    middles = [6, *ALIGNED.get(version, []), size - 7]

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


def text_of(codewords: list[int], version: int) -> str:
    """Join the data codewords of all blocks. The code is drawn without errors, so nothing needs correction."""
    blocks, correction = BLOCKS[version]
    short, longer = divmod(len(codewords) - blocks * correction, blocks)
    lengths = [short + (block >= blocks - longer) for block in range(blocks)]
    rows: list[list[int]] = [[] for _ in range(blocks)]
    codes_left = iter(codewords)
    for place in range(max(lengths)):
        for block in range(blocks):
            if place < lengths[block]:
                rows[block].append(next(codes_left))
    stream = "".join(f"{word:08b}" for row in rows for word in row)
    counted = 16 if version == 10 else 8
    assert stream[:4] == "0100"
    start, length = 4 + counted, int(stream[4 : 4 + counted], 2)
    return bytes(int(stream[start + 8 * place : start + 8 * place + 8], 2) for place in range(length)).decode()


@pytest.mark.parametrize("version", CAPACITY)
def test_qr_code_decodes_to_the_seed(version: int) -> None:
    for spare in (0, 1, 5):
        uri = URI.ljust(CAPACITY[version], "x")[: CAPACITY[version] - spare]
        assert decode(modules_of(second_factor.draw(uri))) == uri


def test_largest_seed_fits_version_10_and_a_longer_one_is_refused() -> None:
    uri = URI.ljust(213, "x")
    matrix = modules_of(second_factor.draw(uri))
    assert len(matrix) == 57
    assert decode(matrix) == uri
    assert second_factor.draw(uri + "x") is None


def test_qr_code_has_no_inline_style_and_works_in_both_themes() -> None:
    svg = second_factor.draw(URI)
    assert "style" not in svg
    assert '<path fill="#fff"' in svg
    assert 'stroke="#000"' in svg
    assert 'class="qr"' in svg
