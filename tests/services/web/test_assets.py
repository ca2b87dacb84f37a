"""Static files: one version for all, packed once, and every neighbour that a module imports is there."""

import gzip
import re
from pathlib import PurePosixPath

import pytest

from services.web import assets


def test_all_of_them_share_one_version_that_their_content_makes() -> None:
    found = assets.load()
    assert re.fullmatch(r"[0-9a-f]{12}", found.version)
    assert assets.load() == found
    assert found.address("style.css") == f"/static/{found.version}/style.css"
    with pytest.raises(KeyError):
        found.address("nothing.css")


def test_packed_ones_are_smaller_and_the_same() -> None:
    packed = {name: asset for name, asset in assets.load().files.items() if asset.packed is not None}
    assert {"style.css", "js/markdown.js", "npm/uplot.js"} <= set(packed)
    for asset in packed.values():
        assert asset.packed is not None
        assert len(asset.packed) < len(asset.content)
        assert gzip.decompress(asset.packed) == asset.content


def test_what_a_module_imports_is_beside_it() -> None:
    files = assets.load().files
    modules = [name for name in files if name.startswith("js/")]
    assert len(modules) > 8
    for name in modules:
        for wanted in re.findall(r"""from '(\.[^']+)'""", files[name].content.decode()):
            assert (PurePosixPath(name).parent / wanted).as_posix() in files, f"{name} imports {wanted}"
