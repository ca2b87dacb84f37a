"""The wheel: a machine that has nothing but it and its dependencies can join a mesh, so Hyperswarm's packages are inside."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIDECAR = "shared/transports/hyperswarm/sidecar/"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder)]
    subprocess.run(command, check=True, timeout=100, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 10 * 1024 * 1024
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_it_holds_the_sidecar_and_every_package_that_runs_there(names: list[str]) -> None:
    modules = {name.removeprefix(SIDECAR + "node_modules/") for name in names if name.startswith(SIDECAR + "node_modules/")}
    packages = {"/".join(name.split("/")[: 2 if name.startswith("@") else 1]) for name in modules}
    assert {"hyperswarm", "hyperdht", "blind-relay", "protomux-rpc", "@hyperswarm/secret-stream", "sodium-native", "udx-native"} <= packages
    assert {SIDECAR + program for program in ("main.js", "bootstrap.js", "relay.js")} <= set(names)
    prebuilt = {name.split("/prebuilds/")[1].split("/")[0] for name in modules if "/prebuilds/" in name}
    assert prebuilt == {"linux-x64", "linux-arm64", "darwin-x64", "darwin-arm64"}


def test_it_holds_no_tool_of_ours_and_no_tests(names: list[str]) -> None:
    assert not [name for name in names if name.startswith(("tests/", "tools/", "bench/", SIDECAR + "test/"))]
    assert not [name for name in names if "/node_modules/@biomejs/" in name or "/node_modules/@hyperswarm/rpc/" in name]
