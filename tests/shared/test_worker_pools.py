"""Reading pools.yaml: its structure, and each mistake with its line."""

from pathlib import Path

import pytest

from shared import errors, worker_pools
from shared.worker_pools import PoolHook, PoolsFile, WorkerPool

FILE = """\
pools:                         # the example of the handbook
  - name: l4
    models: [mistral]
    min: 1
    max: 5
    start_seconds: 150
    idle_seconds: 600
    price_per_hour: 0.66
    hook: {exec: [/bin/sh]}
  - name: spot
    labels: {gpu: t4}
    min: 0
    max: 3
    hook: {webhook: "https://example.org/scale"}
"""


def test_file_is_read() -> None:
    first, second = worker_pools.parse(FILE)
    assert first == WorkerPool(
        name="l4",
        models=("mistral",),
        min=1,
        max=5,
        start_seconds=150,
        idle_seconds=600,
        price_per_hour=0.66,
        hook=PoolHook(command=("/bin/sh",)),
    )
    assert (second.min, second.labels, second.hook) == (0, {"gpu": "t4"}, PoolHook(webhook="https://example.org/scale"))


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        pytest.param("min: 1", "min: 6", "line 4: min 6 is more than max 5", id="min over max"),
        pytest.param("idle_seconds", "idel_seconds", "line 7: .*unknown field `idel_seconds`", id="unknown key of a pool"),
        pytest.param("exec:", "run:", "line 9: .*unknown field `run`", id="unknown key of a hook"),
        pytest.param("pools:", "pool:", "line 1: .*unknown field `pool`", id="unknown key of the file"),
        pytest.param(
            "labels: {gpu: t4}", "models: [phi, mistral]", "line 11: model mistral is already in pool l4", id="model in two pools"
        ),
        pytest.param("/bin/sh", "/gone", "line 9: /gone is not an executable file", id="hook without a program"),
        pytest.param("{exec: [/bin/sh]}", "{}", "line 9: a hook needs either exec or webhook", id="hook without anything"),
        pytest.param("{webhook:", "{exec: [/x], webhook:", "line 14: a hook needs either exec or webhook", id="exec and webhook"),
        pytest.param("webhook: ", "webhook: not ", "line 14: ", id="webhook without a URL"),
        pytest.param("name: spot", "name: l4", "line 10: there are two pools l4", id="name twice"),
        pytest.param("name: spot", "name: Spot 1", "line 10: .*regex", id="not a name"),
        pytest.param("    labels: {gpu: t4}\n", "", "line 10: pool spot needs either models or labels", id="no workers"),
        pytest.param("    max: 3\n", "", "line 10: .*missing required field `max`", id="no max"),
        pytest.param("max: 3", "max: many", "line 13: Expected `int`, got `str`", id="not a number"),
        pytest.param("max: 3", "max: 3\n    max: 4", "line 14: max is set twice", id="key twice"),
        pytest.param("max: 3", "max: [3", "line 14", id="not YAML"),
        pytest.param(FILE, "", "line 1: Expected `object`, got `null`", id="empty"),
        pytest.param(FILE, "[" * 1_000, "recursion", id="deep"),
    ],
)
def test_mistake_names_its_line(old: str, new: str, mistake: str) -> None:
    assert old in FILE
    with pytest.raises(errors.BadSettings, match=mistake):
        worker_pools.parse(FILE.replace(old, new))


def test_all_mistakes_between_pools_are_listed() -> None:
    with pytest.raises(errors.BadSettings, match=r"line 4: min(.|\n)*line 10: there are two"):
        worker_pools.parse(FILE.replace("min: 1", "min: 6").replace("spot", "l4"))


def test_hook_must_be_an_executable_file(tmp_path: Path) -> None:
    program = tmp_path / "scale.sh"
    text = FILE.replace("/bin/sh", str(program))
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    with pytest.raises(errors.BadSettings, match="not an executable file"):
        worker_pools.parse(text)
    program.chmod(0o700)
    assert worker_pools.parse(text)
    with pytest.raises(errors.BadSettings, match="not an executable file"):
        worker_pools.parse(FILE.replace("/bin/sh", str(tmp_path)))


def test_unknown_pool_lists_the_known_ones() -> None:
    found = worker_pools.parse(FILE)
    assert worker_pools.find(found, "spot") is found[1]
    with pytest.raises(errors.NotFound, match="there is no pool 'gone'") as refused:
        worker_pools.find(found, "gone")
    assert refused.value.hint == "known pools: l4, spot"


def test_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(FILE, encoding="utf-8")
    file = PoolsFile(path, runs_hooks=True)
    assert not file.refresh()
    path.write_text(FILE.replace("max: 5", "max: 50"), encoding="utf-8")
    assert file.refresh()
    assert file.pools[0].max == 50


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(FILE.replace("min: 1", "min: 6").encode(), "line 4: min 6 is more than max 5", id="mistake"),
        pytest.param(b"#" * (worker_pools.MAX_FILE_BYTES + 1), "has over 262144 bytes", id="too large"),
        pytest.param(b"\xff", "can't be read", id="not text"),
        pytest.param(None, "can't be read", id="gone"),
    ],
)
def test_bad_file_changes_nothing(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(FILE, encoding="utf-8")
    file = PoolsFile(path, runs_hooks=True)
    before = file.pools
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert file.refresh()
    assert file.pools == before
    assert why in file.trouble
    assert not file.refresh()
    with pytest.raises(errors.BadSettings, match=why):
        PoolsFile(path)
    path.unlink(missing_ok=True)
    path.write_text(FILE, encoding="utf-8")
    assert file.refresh()
    assert file.trouble == ""


def test_gateway_needs_no_programs_of_hooks(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(FILE.replace("/bin/sh", "/gone"), encoding="utf-8")
    assert PoolsFile(path).pools[0].hook == PoolHook(command=("/gone",))


def test_without_a_file_there_are_no_pools() -> None:
    assert PoolsFile(None).pools == ()
