"""A pytest plugin that distributes the tests of `make test` over its processes.

A process collects a file when it reaches it. If each process collected all files first, that would take a minute and a gigabyte.
"""

from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

#: Folder or file -> what its tests share, so that one process runs them all in sequence. Other tests are distributed by file.
SHARED = {
    # One stack for all files of a folder; starting and stopping it takes half a minute.
    "tests/acceptance": "browser",
    "tests/chaos": "browser",
    "tests/agents": "stack",
    "tests/clients": "stack",
    "tests/integration": "stack",
    "tests/sdk/javascript/test_with_a_stack.py": "stack",
    "tests/sdk/python/test_with_a_stack.py": "stack",
    "tests/sdk/test_laptop.py": "stack",
    "tests/full_stack": "full stack",
    "tests/deploy/proxies": "proxies",
    # These don't use that stack.
    "tests/acceptance/test_watching.py": "",
    "tests/chaos/test_invariants.py": "",
    "tests/chaos/test_oracle.py": "",
    "tests/integration/test_swarm_attacks.py": "",
    "tests/install": "full stack",
    "tests/rolling": "full stack",
    # Both render all templates of llama.cpp, many of them the same way.
    "tests/services/inference/chat/test_prompt_plan.py": "templates",
    "tests/services/inference/chat/test_template_probe.py": "templates",
    # Threads of two llama.cpp engines would spin against each other.
    "tests/services/inference/test_embeddings.py": "model",
    "tests/services/inference/backends/test_isolation.py": "model",
    "tests/services/inference/backends/test_llama.py": "model",
    "tests/services/inference/engine/test_embedding_context.py": "model",
    "tests/services/inference/engine/test_llama_model.py": "model",
}
#: Started before all others, because they take longest in one process: started last, one of them would run alone. In this order,
#: no more than two stacks run beside the models.
FIRST = (
    *("stack", "browser", "model"),
    "templates",
    "tests/shared/rpc/test_swarm_mesh.py",
    "tests/cli/machines/test_join.py",
    "tests/deploy/test_compose_services.py",
    "full stack",
    "proxies",
    "tests/stack/test_up_down.py",
)


def find_longest(path: str, table: dict[str, str]) -> str:
    """Return the value of the table's longest folder or file that contains this path; empty without one."""
    return max(((len(place), value) for place, value in table.items() if path == place or path.startswith(f"{place}/")), default=(0, ""))[1]


def scope(nodeid: str) -> str:
    """Return the scope of a test. Tests of one scope run in one process."""
    path = nodeid.partition("::")[0]
    return find_longest(path, SHARED) or path


def put_longest_first(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(scope(item.nodeid), len(order)))


class ScopeScheduler(LoadScopeScheduling):
    """Gives each process one scope at a time and prints the progress itself, because the number of tests is known only at the end."""

    _finished = 0

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        before, self._finished = self._finished, self._finished + 1
        of = len(self.collection or ())
        if of >= 20 and self._finished * 20 // of > before * 20 // of:
            self.config.get_terminal_writer().write(f" {self._finished * 100 // of} % ")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    # In the order of collection, which puts the longest first.
    config.option.loadscopereorder = False
    return ScopeScheduler(config, log)


# --- files that are collected when they run ------------------------------------------------------------------------------------


class FileItem(pytest.Item):
    """Stands for all tests of a file until they run. Runs as a test only if the file turns out to have none to run."""

    def runtest(self) -> None:
        pass

    def collect_tests(self) -> list[pytest.Item]:
        """Return the tests to run. Errors in the file are reported."""
        assert self.parent is not None
        items = list(self.session.genitems(pytest.Module.from_parent(self.parent, path=self.path)))
        self.config.hook.pytest_collection_modifyitems(session=self.session, config=self.config, items=items)
        return items


def is_late(config: pytest.Config) -> bool:
    """Return whether this process collects each file when it runs it: it is one of several, and no option selects single tests."""
    selects = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    return hasattr(config, "workerinput") and not selects


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Item | None:
    if not is_late(parent.config):
        return None
    nodeid = module_path.relative_to(parent.config.rootpath).as_posix()
    made: FileItem = FileItem.from_parent(parent, name=module_path.name, nodeid=nodeid)
    made.path = module_path
    # The deadline applies to each of the file's tests.
    made.add_marker(pytest.mark.timeout(0))
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not isinstance(item, FileItem):
        return None
    items = item.collect_tests()
    if not items:
        # Without a report. This tears down the fixtures of the last test's folder that the next test doesn't use.
        runtestprotocol(item, log=False, nextitem=nextitem)
    running = item.session.items
    place = running.index(item)
    for each, following in zip(items, [*items[1:], nextitem], strict=False):
        # xdist compares the reports with it.
        running[place] = each
        item.config.hook.pytest_runtest_protocol(item=each, nextitem=following)
        if item.session.shouldfail or item.session.shouldstop:
            break
    running[place] = item
    return True
