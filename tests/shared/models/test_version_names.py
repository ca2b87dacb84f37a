"""Names of versions and channels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.models import version_names
from shared.models.version_names import VersionName
from shared.types import ModelName

DIGEST = "sha256:" + "0a" * 32
LLAMA = ModelName("llama3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llama3", VersionName(LLAMA, channel="stable")),
        ("llama3@7", VersionName(LLAMA, version=7)),
        ("llama3@canary", VersionName(LLAMA, channel="canary")),
        (f"llama3@{DIGEST}", VersionName(LLAMA, digest=DIGEST)),
        ("qwen/qwen3:8b@stable", VersionName(ModelName("qwen/qwen3:8b"), channel="stable")),
    ],
)
def test_a_name_says_which_version(text: str, expected: VersionName) -> None:
    assert version_names.parse(text) == expected
    assert version_names.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "@7", "a@", "a@0", "a@07", "a@99999999999", "a@2147483648", "a@Canary", "a@-x", "a@x-", "a@sha256:1", "a@7@8", "../a", "a//b",
     "a/.b", "x" * 81],
)  # fmt: skip
def test_other_names_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        version_names.parse(text)
    assert refused.value.hint


@given(st.from_regex(version_names.NAME_PATTERN, fullmatch=True).filter(lambda text: len(text) <= 80), st.integers(1, 2**31 - 1))
def test_every_version_of_every_name_can_be_written(model: str, version: int) -> None:
    name = VersionName(ModelName(model), version=version)
    assert version_names.parse(str(name)) == name
