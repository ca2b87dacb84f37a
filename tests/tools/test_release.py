"""Versions and change log must match a tag before a release."""

import pytest

from tools import release

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n\n- Shards.\n\n## [0.1.0]\n\n- All.\n"


@pytest.mark.parametrize(
    ("tag", "versions", "mistakes"),
    [
        pytest.param("v0.2.0", {"a": "0.2.0"}, [], id="agrees"),
        pytest.param("v0.2.0", {"a": "0.2.0", "b": "0.1.0"}, ["b says 0.1.0, the tag v0.2.0"], id="one forgotten"),
        pytest.param("0.2.0", {"a": "0.2.0"}, ["a says 0.2.0, the tag 0.2.0"], id="no v"),
        pytest.param("v0.3.0", {"a": "0.3.0"}, ["CHANGELOG.md has nothing under [0.3.0]"], id="no notes"),
    ],
)
def test_tag_matches_all_versions_and_the_changelog(tag: str, versions: dict[str, str], mistakes: list[str]) -> None:
    assert release.find_mistakes(tag, versions, CHANGELOG) == mistakes


def test_release_notes_are_the_section_of_the_version() -> None:
    assert release.read_notes("0.2.0", CHANGELOG) == "### Added\n\n- Shards."
    assert release.read_notes("0.1.0", CHANGELOG) == "- All."
    assert release.read_notes("0.1", CHANGELOG) == ""


def test_all_packages_have_one_version() -> None:
    assert len(set(release.read_versions().values())) == 1
