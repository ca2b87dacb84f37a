import io
import random
import zipfile
from datetime import UTC, datetime

from services.web.http.downloads import ZipStream

NOW = datetime(2026, 11, 20, 14, 5, 8, tzinfo=UTC)


def opened(content: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(content))


def test_files_are_extracted_as_written() -> None:
    archive = ZipStream(NOW)
    pieces = [("one.txt", b"first, "), ("one.txt", b"second"), ("empty.txt", b""), ("two/three.bin", bytes(range(256)))]
    sent = b"".join([*(archive.add(name, piece) for name, piece in pieces), archive.close()])
    with opened(sent) as found:
        assert found.testzip() is None
        assert {name: found.read(name) for name in found.namelist()} == {
            "one.txt": b"first, second", "empty.txt": b"", "two/three.bin": bytes(range(256)),
        }  # fmt: skip
        assert found.getinfo("one.txt").date_time == (2026, 11, 20, 14, 5, 8)


def test_only_the_current_piece_is_in_memory() -> None:
    archive, rng = ZipStream(NOW), random.Random(7)
    piece = 65_536
    kept = most = 0
    for _ in range(64):
        kept += piece - len(archive.add("large.bin", rng.randbytes(piece)))
        most = max(most, kept)
    # Incompressible data comes out as fast as it goes in; zlib holds back a few windows at most.
    assert most < 4 * piece
    with opened(_again(rng_seed=7, pieces=64) + b"") as found:
        assert found.getinfo("large.bin").file_size == 64 * piece


def _again(rng_seed: int, pieces: int) -> bytes:
    archive, rng = ZipStream(NOW), random.Random(rng_seed)
    return b"".join([*(archive.add("large.bin", rng.randbytes(65_536)) for _ in range(pieces)), archive.close()])


def test_empty_archive_is_valid() -> None:
    with opened(ZipStream(NOW).close()) as found:
        assert found.namelist() == []
