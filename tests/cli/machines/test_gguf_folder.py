"""Which models a folder contains."""

from pathlib import Path

import pytest

from cli.machines import gguf_folder
from shared import errors


def folder_with(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def test_each_file_is_a_model_named_after_it(tmp_path: Path) -> None:
    folder_with(tmp_path, "qwen3-4b.Q4_K_M.gguf", "phi.GGUF", "readme.md", "mmproj-phi.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert gguf_folder.find_models(tmp_path) == {"phi": tmp_path / "phi.GGUF", "qwen3-4b.Q4_K_M": tmp_path / "qwen3-4b.Q4_K_M.gguf"}


def test_split_model_is_one_model_opened_by_its_first_part(tmp_path: Path) -> None:
    folder_with(tmp_path, "big-00001-of-00002.gguf", "big-00002-of-00002.gguf")
    assert gguf_folder.find_models(tmp_path) == {"big": tmp_path / "big-00001-of-00002.gguf"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param([], "no .gguf files in", id="none"),
        pytest.param(["notes.txt"], "no .gguf files in", id="none that is a model"),
        pytest.param(["a=b.gguf"], "can't contain =", id="a name that MODELS could not carry"),
        pytest.param(["a,b.gguf"], "can't contain commas", id="a path that MODELS could not carry"),
        pytest.param(["a.gguf", "a.GGUF"], "would both be served as a", id="two of one name"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(errors.BadSettings, match=message):
        gguf_folder.find_models(folder_with(tmp_path, *names))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings, match="there is no folder"):
        gguf_folder.find_models(tmp_path / "nowhere")
