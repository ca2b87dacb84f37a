from pathlib import Path

import pytest

from services.inference import missing_libraries
from services.inference.chat import library
from stack.servers import engine_libraries

CHAT, IMAGES = missing_libraries.WITHOUT


def test_these_are_the_libraries_that_are_built_where_workers_load_them() -> None:
    assert [missing_libraries.path(name, Path()) for name in missing_libraries.WITHOUT] == [
        each.file for each in engine_libraries.LIBRARIES
    ]
    assert [missing_libraries.path(name) for name in missing_libraries.WITHOUT] == [library.PATH, missing_libraries.IMAGES]


@pytest.mark.parametrize(
    ("is_checkout", "platform", "end"),
    [
        (True, "linux", "To get what is missing: make up builds it in the background (4 minutes)"),
        (False, "linux", "To get what is missing: aicli update, once the mesh has built it"),
        (True, "darwin", "They are built on Linux only"),
    ],
)
def test_it_says_how_to_get_them_here(*, is_checkout: bool, platform: str, end: str) -> None:
    """A machine that joined by the mesh's line has no source to build them from, and never compiles."""
    said = missing_libraries.describe([IMAGES], is_checkout=is_checkout, platform=platform)
    assert said == f"libaimesh_images is missing: no model sees images. {end}"


def test_only_what_is_missing_is_named(tmp_path: Path) -> None:
    both = missing_libraries.find(tmp_path)
    assert both.startswith(
        "libaimesh_chat is missing: thoughts stay in the text, and tools use a form that models don't know; libaimesh_images"
    )
    assert "make up" in both
    for name, then in ((CHAT, "libaimesh_images is missing: no model sees images"), (IMAGES, "")):
        path = missing_libraries.path(name, tmp_path)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert missing_libraries.find(tmp_path).partition(".")[0] == then
