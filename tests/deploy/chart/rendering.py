"""The chart as helm renders it. Tools come from `make deploy-tools` (.tools), or else from the PATH."""

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests import capabilities

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "ai-inference"
CASES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
RELEASE, NAMESPACE = "aimesh", "aimesh"
#: The chart's only required value, as `make chart` sets it.
REGISTRY = ("--set", "image.registry=localhost")

Object = dict[str, Any]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    capabilities.require("helm")
    program = str(capabilities.find_program("helm"))
    return subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=120)


@functools.cache
def packaged() -> Path:
    """Return the chart as users get it: an archive, in which the links to deploy/prometheus and so on are files."""
    folder = tempfile.mkdtemp(prefix="chart-")
    done = helm("package", str(CHART), "--destination", folder)
    assert done.returncode == 0, done.stderr
    return next(Path(folder).glob("*.tgz"))


@functools.cache
def render(case: str = "", *settings: str) -> str:
    """Return the manifests for a file of ci/, with `--set` for each setting."""
    words = ["--values", str(CHART / "ci" / f"{case}.yaml")] if case else []
    for setting in settings:
        words += [setting] if setting.startswith("--") else ["--set", setting]
    done = helm("template", RELEASE, str(packaged()), "--namespace", NAMESPACE, *REGISTRY, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(*settings: str) -> str:
    """Return helm's message about values that the chart refuses."""
    words = [word for setting in settings for word in ("--set-json" if "=[" in setting or "={" in setting else "--set", setting)]
    done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *REGISTRY, *words)
    assert done.returncode != 0, "not refused"
    error = next(line for line in done.stderr.splitlines() if line.startswith("Error:"))
    return re.sub(r"^Error: execution error at \([^)]*\): ", "", error)


@functools.cache
def objects(case: str = "", *settings: str) -> tuple[Object, ...]:
    return tuple(each for each in yaml.load_all(render(case, *settings), Loader=yaml.CSafeLoader) if each)


def find(kind: str, name: str, case: str = "", *settings: str) -> Object:
    [found] = [each for each in objects(case, *settings) if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods(case: str = "", *settings: str) -> Iterator[tuple[Object, Object]]:
    """Yield each workload with its pod's spec."""
    for each in objects(case, *settings):
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield each, each["spec"]["template"]["spec"]
        elif each["kind"] == "CronJob":
            yield each, each["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    return [*(pod.get("initContainers") or ()), *pod["containers"]]


def environment(container: Object) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env") or ()}
