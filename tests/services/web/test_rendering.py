"""Static files: one version for all, compressed once, and every imported module exists. Templates: each compiles."""

import gzip
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import pytest

from services.web import rendering
from services.web.rendering import Renderer
from shared import errors, features


def test_all_assets_share_one_version_derived_from_their_content() -> None:
    found = rendering.load_assets()
    assert re.fullmatch(r"[0-9a-f]{12}", found.version)
    assert rendering.load_assets() == found
    assert found.address("style.css") == f"/static/{found.version}/style.css"
    with pytest.raises(KeyError):
        found.address("nothing.css")


def test_styles_of_features_follow_the_core_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "style.css").write_text(".acme { color: red; }\n", encoding="utf-8")
    monkeypatch.setattr(features, "files", lambda _name: [tmp_path / "style.css"])
    assert rendering.load_assets().files["style.css"].content.endswith(b"\n.acme { color: red; }\n")


def test_compressed_assets_are_smaller_and_equal() -> None:
    packed = {name: asset for name, asset in rendering.load_assets().files.items() if asset.packed is not None}
    assert {"style.css", "js/markdown.js", "npm/uplot.js"} <= set(packed)
    for asset in packed.values():
        assert asset.packed is not None
        assert len(asset.packed) < len(asset.content)
        assert gzip.decompress(asset.packed) == asset.content


def test_imported_modules_exist() -> None:
    files = rendering.load_assets().files
    modules = [name for name in files if name.startswith("js/")]
    assert len(modules) > 8
    for name in modules:
        for wanted in re.findall(r"""from '(\.[^']+)'""", files[name].content.decode()):
            assert (PurePosixPath(name).parent / wanted).as_posix() in files, f"{name} imports {wanted}"


def test_missing_references_in_templates_and_modules_are_found() -> None:
    found = rendering.load_assets()
    assert found.find_missing([]) == []
    assert found.find_missing(["{{ static('js/nav.js') }} {{ static(\"mark.svg\") }}"]) == []
    assert found.find_missing(["{{ static('gone.css') }}", "<img src={{ static( 'gone.svg' ) }}>"]) == ["gone.css", "gone.svg"]
    without = replace(found, files={name: asset for name, asset in found.files.items() if name != "js/fragment.js"})
    assert without.find_missing([]) == ["js/fragment.js"], "invitation.js imports it"


@pytest.mark.parametrize("name", ["npm/uplot.js", "style.css", "js/stream.js"])
def test_missing_file_stops_web_at_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = rendering.load_assets()
    files = {each: asset for each, asset in found.files.items() if each != name}
    monkeypatch.setattr(rendering, "load_assets", lambda: replace(found, files=files))
    with pytest.raises(errors.BadSettings, match=f"missing: {name}"):
        Renderer.load()


def test_each_template_compiles(renderer: Renderer) -> None:
    names = renderer.templates.list_templates()
    assert {"error.html", "layout.html"} <= set(names)
    for name in names:
        assert renderer.templates.get_template(name).name == name


def test_start_compiles_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str | None] = []
    compile_template = jinja2.Environment.compile

    def count(self: jinja2.Environment, source: str, name: str | None = None, *more: Any, **named: Any) -> Any:
        compiled.append(name)
        return compile_template(self, source, name, *more, **named)

    monkeypatch.setattr(jinja2.Environment, "compile", count)
    loaded = Renderer.load()
    assert compiled == []
    loaded.templates.get_template("layout.html")
    assert compiled[0] == "layout.html"
