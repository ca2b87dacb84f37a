from pathlib import Path

import pytest

from services.inference.models import model_discovery
from services.inference.models.catalog import MAX_NAMES, Catalog, CatalogEntry, Defaults
from shared import errors, model_folder
from shared.types import ModelName


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def names(catalogue: Catalog) -> list[str]:
    return [entry.name for entry in catalogue.entries]


def test_packaged_model_is_the_default_and_loaded_at_start() -> None:
    (entry,) = model_discovery.find({}).entries
    assert (entry.name, entry.preload) == ("smollm2", True)
    assert (entry.temperature, entry.top_p, entry.repeat_penalty) == (0.2, 0.9, 1.1)
    assert entry.file.suffix == ".gguf"
    assert entry.file.read_bytes()[:4] == b"GGUF"


def test_setting_replaces_the_default_and_is_loaded_at_start(tmp_path: Path) -> None:
    files(tmp_path, "a.gguf")
    defaults = Defaults(slots=2, keep_alive_seconds=5.0)
    found = model_discovery.find({"a": f"{tmp_path}/a.gguf", "b": f"{tmp_path}/a.gguf"}, defaults=defaults).entries
    assert found == tuple(
        CatalogEntry(name=ModelName(name), file=tmp_path / "a.gguf", slots=2, keep_alive_seconds=5.0, preload=True) for name in ("a", "b")
    )


def test_models_in_a_folder_are_served_on_demand_each_file_once(tmp_path: Path) -> None:
    files(tmp_path, "b.gguf", "a.GGUF", "c-00001-of-00002.gguf", "c-00002-of-00002.gguf", "mmproj-a.gguf", "notes.txt")
    found = model_discovery.find({}, folder=tmp_path)
    assert names(found) == ["a", "b", "c"]
    assert not any(entry.preload for entry in found.entries)


def test_three_sources_combine_and_nothing_is_served_twice(tmp_path: Path) -> None:
    files(tmp_path, "a.gguf", "b.gguf", "c.gguf", "d.gguf", "e.gguf")
    yaml = tmp_path / "models.yaml"
    yaml.write_text("models:\n- {name: b, slots: 9}\n- {name: renamed, file: c.gguf, aliases: [e]}\n- {name: far, service: s}\n")
    found = model_discovery.find({"x": f"{tmp_path}/d.gguf"}, yaml, tmp_path)
    assert names(found) == ["b", "renamed", "x", "a"]
    assert found.entries[0].slots == 9
    assert [other.name for other in found.elsewhere] == ["far"]


def test_beside_a_registry_of_other_services_the_packaged_model_is_served(tmp_path: Path) -> None:
    yaml = tmp_path / "models.yaml"
    yaml.write_text("- {name: far, service: s, path: /infer}\n")
    found = model_discovery.find({}, yaml)
    assert (names(found), [one.name for one in found.elsewhere]) == ([model_folder.PACKAGED_MODEL], ["far"])


def test_all_mistakes_of_all_sources_are_reported_together(tmp_path: Path) -> None:
    files(tmp_path, "p-00001-of-00002.gguf", "b.gguf", "B.gguf")
    yaml = tmp_path / "models.yaml"
    yaml.write_text(
        "- {name: a, file: no.gguf, aliases: [x]}\n- {name: a, file: b.gguf, slots: 0}\n- {name: c, file: b.gguf, aliases: x}\n"
    )
    with pytest.raises(errors.BadSettings) as refused:
        model_discovery.find({"m": f"{tmp_path}/m.gguf", "n,": "~nobody-here/x", "x": f"{tmp_path}/b.gguf"}, yaml, tmp_path)
    for message in (
        f"models.yaml line 1, models[0]: a: there is no file {tmp_path}/no.gguf",
        "models.yaml line 2, models[1].slots",
        "models.yaml line 3, models[2]: the name x is already used by models.yaml line 1, models[0]",
        f"MODELS: m: there is no file {tmp_path}/m.gguf",
        "MODELS: n,: ~nobody-here/x starts with the home of an unknown user",
        "MODELS: the name x is already used",
        f"MODELS_DIR: p: there is no file {tmp_path}/p-00002-of-00002.gguf",
    ):
        assert message in refused.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\xff\xfe", "is not UTF-8", id="no text"),
        pytest.param(b"models: []", "its list of models is empty", id="no model"),
        pytest.param(None, "cannot read", id="no file"),
    ],
)
def test_unusable_models_yaml(tmp_path: Path, content: bytes | None, message: str) -> None:
    yaml = tmp_path / "models.yaml"
    if content is not None:
        yaml.write_bytes(content)
    with pytest.raises(errors.BadSettings, match=message):
        model_discovery.find({}, yaml)


def test_unusable_folder(tmp_path: Path) -> None:
    files(tmp_path, "file")
    with pytest.raises(errors.BadSettings, match=r"cannot read .*Not a directory"):
        model_discovery.find({}, folder=tmp_path / "file")


@pytest.mark.parametrize("folder", [".", "none"])
def test_models_of_an_empty_folder_or_of_pulls_come_later(tmp_path: Path, folder: str) -> None:
    assert names(model_discovery.find({}, folder=tmp_path / folder)) == []
    assert names(model_discovery.find({}, pulls=True)) == []
    files(tmp_path, "mine.gguf")
    assert names(model_discovery.find({"mine": f"{tmp_path}/mine.gguf"}, pulls=True)) == ["mine"]


def test_files_that_are_put_into_the_folder_later(tmp_path: Path) -> None:
    files(tmp_path, "a.gguf", "b.gguf")
    yaml = tmp_path / "models.yaml"
    yaml.write_text("models:\n- {name: renamed, file: b.gguf, aliases: [c]}\n")
    configured = model_discovery.find({}, yaml, tmp_path).entries
    files(tmp_path, "c.gguf", "d.gguf", "D.GGUF", "e=f.gguf", "mmproj-d.gguf")
    (later,) = model_discovery.find_later(tmp_path, configured, Defaults(slots=3))[1:]
    assert (later.name, later.file, later.slots, later.projector) == ("d", tmp_path / "d.gguf", 3, tmp_path / "mmproj-d.gguf")
    assert model_discovery.find_later(tmp_path / "none", configured, Defaults()) == ()


def test_two_files_of_one_name_in_a_folder(tmp_path: Path) -> None:
    files(tmp_path, "a.gguf", "a-00001-of-00001.gguf")
    with pytest.raises(errors.BadSettings, match="would both be served as a; rename one"):
        model_discovery.find({}, folder=tmp_path)


def test_too_many_names_to_announce(tmp_path: Path) -> None:
    files(tmp_path, *(f"{number}.gguf" for number in range(MAX_NAMES + 1)))
    with pytest.raises(errors.BadSettings, match="65 names and aliases"):
        model_discovery.find({}, folder=tmp_path)


def test_a_machine_without_the_packaged_model_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_discovery, "DEFAULT_PACKAGE", "no-such-package-here")
    assert model_discovery.find({}).entries == ()
    with pytest.raises(errors.BadSettings, match="not installed") as refused:
        model_discovery.installed()
    assert "make setup" in refused.value.hint


def test_faster_copy_of_the_default_model_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = tmp_path / "Model-1B.Q4_1.gguf"
    monkeypatch.setattr(model_discovery, "installed", lambda: original)
    assert model_discovery.packaged() == original
    files(tmp_path, "Model-1B.Q8_0.gguf")
    assert model_discovery.packaged() == tmp_path / "Model-1B.Q8_0.gguf"


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    yaml = tmp_path / "models.yaml"
    yaml.write_text("inference:\n  engine: vllm\n  models:\n  - {name: llama-2-7b, gpu_memory: 16GB}\n")
    with pytest.raises(errors.BadSettings, match=r"models\.yaml line 4, inference\.models\[0\]: the program vllm is not installed here"):
        model_discovery.find({}, yaml)
    program = tmp_path / "vllm"
    program.touch(0o755)
    assert names(model_discovery.find({}, yaml)) == ["llama-2-7b"]
