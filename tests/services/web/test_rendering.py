"""Static files: one version for all, compressed once, and every imported module exists."""

import gzip
import re
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from services.web import rendering
from services.web.rendering import Renderer
from shared import errors


def test_all_assets_share_one_version_derived_from_their_content() -> None:
    found = rendering.load_assets()
    assert re.fullmatch(r"[0-9a-f]{12}", found.version)
    assert rendering.load_assets() == found
    assert found.address("style.css") == f"/static/{found.version}/style.css"
    with pytest.raises(KeyError):
        found.address("nothing.css")


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
