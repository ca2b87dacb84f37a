import re

from shared.telemetry.version import version


def test_it_is_the_version_of_the_files() -> None:
    """Otherwise a container's nodes would announce "unknown", and `aicli stack migrate --post` could not tell whether they are old."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())
