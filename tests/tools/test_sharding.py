"""The shards of the test files that CI runs on separate machines: together all files, none twice."""

import pytest

from tests import sharding

pytest_plugins = ["pytester"]


def test_every_file_is_in_exactly_one_shard_of_similar_length() -> None:
    seconds = {f"tests/test_{number}.py": float(number % 17 + 1) for number in range(100)}
    shares = sharding.split(seconds, 4)
    assert sorted(name for share in shares for name in share) == sorted(seconds)
    loads = [sum(seconds[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= 17


def test_order_of_files_does_not_change_the_shards() -> None:
    seconds = {f"tests/test_{number}.py": float(number % 5) for number in range(30)}
    assert sharding.split(seconds, 3) == sharding.split(dict(reversed(seconds.items())), 3)


def test_estimate_counts_tests_and_knows_slow_folders() -> None:
    text = "def test_a():\n    pass\n\nasync def test_b():\n    pass\n"
    assert sharding.estimate_seconds("tests/cli/test_x.py", text) == 2 * sharding.SECONDS_PER_TEST["tests"]
    assert sharding.estimate_seconds("tests/chaos/test_x.py", text) == 2 * sharding.SECONDS_PER_TEST["tests/chaos"]


def test_folders_with_an_estimate_exist() -> None:
    assert [folder for folder in sharding.SECONDS_PER_TEST if not (sharding.ROOT / folder).is_dir()] == []


@pytest.mark.parametrize("words", ["0/4", "5/4", "2", "a/b", "-1/4"])
def test_unknown_shard_is_refused(words: str) -> None:
    with pytest.raises(pytest.UsageError, match="write for example 2/4"):
        sharding.read_shard(words)


def test_run_collects_only_its_shard(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # CI sets the shard of the outer run in this variable.
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setattr(sharding, "ROOT", pytester.path)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    folder = pytester.mkdir("tests")
    for name in ("one", "two", "three"):
        (folder / f"test_{name}.py").write_text(f"def test_{name}():\n    pass\n")
    runs = [pytester.inline_run("-p", "tests.sharding", "--shard", f"{number}/4", "tests") for number in range(1, 5)]
    passed = sorted(
        report.nodeid.split("::")[1] for run in runs for report in run.getreports("pytest_runtest_logreport") if report.when == "call"
    )
    assert passed == ["test_one", "test_three", "test_two"]
    # The fourth shard has no file, which is not a failure.
    assert [run.ret for run in runs] == [pytest.ExitCode.OK] * 4
