"""Which files are models, judged only by name."""

from pathlib import Path

import pytest

from shared import model_folder
from shared.model_folder import Clash, FoundModels


def folder_with(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def test_each_file_is_a_model_under_its_own_name(tmp_path: Path) -> None:
    folder_with(tmp_path, "qwen3-4b.Q4_K_M.gguf", "phi.GGUF", "readme.md", "mmproj-phi.gguf", "MMPROJ.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert model_folder.find(tmp_path) == FoundModels(
        {"phi": tmp_path / "phi.GGUF", "qwen3-4b.Q4_K_M": tmp_path / "qwen3-4b.Q4_K_M.gguf"}, clashes=()
    )


def test_a_split_model_is_one_model_opened_by_its_first_file(tmp_path: Path) -> None:
    folder_with(tmp_path, "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "rest-00002-of-00002.gguf")
    assert model_folder.find(tmp_path).models == {"big": tmp_path / "big-00001-of-00002.gguf"}


def test_two_files_of_one_name_are_reported_and_the_first_wins(tmp_path: Path) -> None:
    folder_with(tmp_path, "a-00001-of-00001.gguf", "a.gguf", "b.gguf")
    first, second = tmp_path / "a-00001-of-00001.gguf", tmp_path / "a.gguf"
    assert model_folder.find(tmp_path) == FoundModels({"a": first, "b": tmp_path / "b.gguf"}, (Clash("a", first, second),))


def test_an_unreadable_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        model_folder.find(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("a.gguf", ["a.gguf"], id="one file"),
        pytest.param("a-00001-of-00002.gguf", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], id="two parts"),
    ],
)
def test_the_parts_of_a_split_model(name: str, expected: list[str]) -> None:
    assert [path.name for path in model_folder.parts(Path("/x") / name)] == expected


def test_a_name_that_claims_endless_parts_is_not_followed() -> None:
    assert len(model_folder.parts(Path("/x/a-00001-of-99999.gguf"))) == 1000
