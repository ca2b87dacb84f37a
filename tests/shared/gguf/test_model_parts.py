from pathlib import Path

import pytest

from services.inference.models import model_discovery
from shared.gguf import gguf_header
from shared.gguf.gguf_header import NotAModel
from tests import gguf_files
from tests.gguf_files import Tensor, Typed, single, text

TENSORS = (Tensor("output_norm.weight", (64,), "f32"),)


def split(number: int, count: int) -> dict[str, Typed]:
    return {"split.no": single("u16", number), "split.count": single("u16", count)}


def write(path: Path, pairs: dict[str, Typed], *, first: bool = True) -> Path:
    named: dict[str, Typed] = {"general.architecture": text("llama")} if first else {}
    path.write_bytes(gguf_files.joined(gguf_files.file(named | pairs, TENSORS)))
    return path


def three(folder: Path) -> list[Path]:
    """Write a model in three parts."""
    return [write(folder / f"model-{number + 1:05}-of-00003.gguf", split(number, 3), first=number == 0) for number in range(3)]


def test_packaged_model_is_valid() -> None:
    assert gguf_header.check_parts(model_discovery.packaged()).architecture == "llama"


def test_all_parts_of_a_split_model_are_valid(tmp_path: Path) -> None:
    assert gguf_header.check_parts(three(tmp_path)[0]).split_count == 3


def test_damaged_part_is_found_before_llama_cpp_reads_it(tmp_path: Path) -> None:
    first, _, third = three(tmp_path)
    third.write_bytes(third.read_bytes()[:40])
    with pytest.raises(NotAModel, match=r"model-00003-of-00003\.gguf: "):
        gguf_header.check_parts(first)


def test_missing_part_is_named(tmp_path: Path) -> None:
    first, second, _ = three(tmp_path)
    second.unlink()
    with pytest.raises(NotAModel, match=r"model-00002-of-00003\.gguf: there is no such file"):
        gguf_header.check_parts(first)


def test_part_of_another_model_is_found(tmp_path: Path) -> None:
    first, second, _ = three(tmp_path)
    write(second, split(1, 4), first=False)
    with pytest.raises(NotAModel, match="its header says part 2 of 4, but it should be part 2 of 3"):
        gguf_header.check_parts(first)


def test_split_model_is_opened_by_its_first_part(tmp_path: Path) -> None:
    with pytest.raises(NotAModel, match="it is part 2 of 3; a model is opened by its first part"):
        gguf_header.check_parts(three(tmp_path)[1])


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        pytest.param("model.gguf", 2, "its name must end in -00001-of-00002.gguf", id="the others cannot be found by this name"),
        pytest.param("-00001-of-00002.gguf", 2, "its name must end in", id="an ending is no name"),
        pytest.param("model-00001-of-60000.gguf", 60000, "says 60000 parts; at most 512", id="more parts than a process may open"),
    ],
)
def test_invalid_part_names_and_counts(tmp_path: Path, name: str, count: int, words: str) -> None:
    with pytest.raises(NotAModel, match=words):
        gguf_header.check_parts(write(tmp_path / name, split(0, count)))


@pytest.mark.parametrize("kind", ["missing", "folder", "text"])
def test_invalid_model_is_refused_with_its_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    match kind:
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("once upon a time")
    with pytest.raises(NotAModel, match=f"^{path}: "):
        gguf_header.check_parts(path)
