"""Which engine .venv has: prebuilt, compiled here (BUILD=1) or from a wheel of yours (ENGINE_WHEEL), and for what kind of GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from services.inference import gpus
from tools import setup_steps
from tools.engine import compiled, wheel
from tools.setup_steps import VENV, SetupFailed

FILE = VENV / ".aimesh-engine"
#: Engines without a compiler. The first takes Vulkan for a GPU.
PREBUILT = ("auto", "cpu", "cuda", "vulkan")


@dataclass(frozen=True)
class EngineChoice:
    """Saved, so that later runs keep the engine."""

    #: One of PREBUILT or of compiled.FLAVOURS.
    flavour: str = PREBUILT[0]
    is_compiled: bool = False
    #: The URL of a wheel, with its hash; empty for none.
    wheel: str = ""

    @property
    def plan(self) -> gpus.GpuPlan:
        """What this machine's GPUs get. A compiled engine has no plug-in."""
        if self.is_compiled:
            return gpus.GpuPlan("")
        return gpus.plan(gpus.look(), "" if self.flavour == PREBUILT[0] else self.flavour)

    def key(self) -> str:
        """Name the engine by all that it is made of."""
        if self.wheel:
            return self.wheel
        if self.is_compiled:
            return compiled.wheel_folder(self.flavour).name
        return f"{wheel.this_folder().name} {self.plan.plug_in}"

    def ensure(self) -> list[str]:
        """Return its wheels, as arguments of pip. Raises SetupFailed."""
        if self.is_compiled and not self.wheel:
            return [str(compiled.ensure(self.flavour))]
        plug_in = self.plan.plug_in
        return [self.wheel or str(wheel.ensure()), *([str(wheel.ensure(plug_in=plug_in))] if plug_in else [])]


def read() -> EngineChoice:
    try:
        return EngineChoice(**json.loads(FILE.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return EngineChoice()


def save(choice: EngineChoice) -> None:
    setup_steps.replace_text(FILE, json.dumps(asdict(choice)) + "\n")


def decide(saved: EngineChoice, asked: str, environment: Mapping[str, str], *, has_prebuilt: bool) -> EngineChoice:
    """Return the engine to use from now on. Raises SetupFailed if there is none like that. Pure."""
    flavour, build = asked or environment.get("ENGINE", ""), environment.get("BUILD", "")
    choice = EngineChoice(flavour) if flavour else saved
    if given := environment.get("ENGINE_WHEEL", choice.wheel):
        # A saved wheel is checked too: after an update, it is of the wrong version.
        return replace(choice, wheel=find_wheel(given))
    is_compiled = build == "1" if build or flavour else choice.is_compiled
    if is_compiled or not has_prebuilt:
        choice = replace(choice, is_compiled=True, flavour="cpu" if choice.flavour == PREBUILT[0] else choice.flavour)
    elif choice.flavour not in PREBUILT:
        name = choice.flavour
        raise SetupFailed(f"There is no prebuilt engine for {name}: compile it with BUILD=1 make worker-{name}, or use make worker-vulkan")
    else:
        choice = replace(choice, is_compiled=False)
    if choice.flavour not in (compiled.FLAVOURS if choice.is_compiled else PREBUILT):
        raise SetupFailed(f"ENGINE is {choice.flavour}, but it must be one of {', '.join(PREBUILT)}")
    return choice


def find_wheel(given: str) -> str:
    """Return the URL of a wheel, whose hash pip checks. Raises SetupFailed if it has none or is of another version."""
    address, _, digest = given.partition("#")
    if not re.fullmatch(r"sha256=[0-9a-f]{64}", digest):
        raise SetupFailed(f"ENGINE_WHEEL has no hash: add #sha256=… to {given}, as `sha256sum` prints it")
    prefix = f"{wheel.ENGINE.replace('-', '_')}-{wheel.engine_version()}-"
    if not address.rpartition("/")[2].startswith(prefix):
        raise SetupFailed(f"ENGINE_WHEEL is {given}, but this release needs {prefix}….whl; without a wheel: make worker-cpu")
    return given if "://" in address else f"{Path(address).expanduser().absolute().as_uri()}#{digest}"
