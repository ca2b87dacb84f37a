"""Install the Debian packages that some tests need, as root (`make test-system`).

It writes nothing to the checkout, which may belong to another user, and runs on the system's own python3 (standard library only).
"""

from __future__ import annotations  # an older Python must get as far as an error message

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Found as in tests/capabilities.py.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: Debian package -> its programs, of which one must exist. Without it, tests are skipped (tests/capabilities.py).
SYSTEM_PACKAGES = {
    "chromium-headless-shell": BROWSERS,
    "iproute2": ("ip",),
    "iptables": ("iptables",),
    "conntrack": ("conntrack",),
    "curl": ("curl",),
    "systemd": ("systemd-analyze",),
    "prometheus": ("promtool",),
    "prometheus-alertmanager": ("amtool",),
    "pgbouncer": ("pgbouncer",),
    "docker-registry": ("docker-registry",),
    "etcd-server": ("etcd",),
    "skopeo": ("skopeo",),
}
#: Their packages start services, which would take ports that aimesh uses.
SERVERS = ("prometheus", "prometheus-alertmanager", "pgbouncer", "docker-registry", "etcd-server")
#: Packages that are only recommended but needed: for Chromium a sandbox for ordinary users, and a font.
RECOMMENDED = {"chromium-headless-shell": ("chromium-sandbox", "fonts-liberation")}
#: Other recommended packages would install another service.
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends")
#: Where Debian installs programs that may be missing on a user's PATH.
SBIN = Path("/usr/sbin")
#: Debian asks this program whether a service may start after its installation.
POLICY = Path("/usr/sbin/policy-rc.d")
UNITS = Path("/etc/systemd/system")


class SystemNotReady(Exception):
    """Ends the program with its message."""


def find_lacking_packages(wanted: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [package for package, programs in wanted.items() if not any(shutil.which(name) or (SBIN / name).exists() for name in programs)]


def ensure_system(wanted: Mapping[str, tuple[str, ...]] = SYSTEM_PACKAGES, servers: Sequence[str] = SERVERS) -> None:
    """Install those of the packages that are missing, without starting their servers. Raises SystemNotReady."""
    lacking = find_lacking_packages(wanted)
    if not lacking:
        sys.stderr.write("The system has all packages that the tests need.\n")
        return
    packages = [each for package in lacking for each in (package, *RECOMMENDED.get(package, ()))]
    if shutil.which("apt-get") is None:
        raise SystemNotReady(f"Some tests are skipped here. They need these programs, by Debian's names: {', '.join(packages)}")
    if os.geteuid() != 0:
        raise SystemNotReady(f"Some tests need packages that only root can install. Run:\n  sudo {' '.join((*INSTALL, *packages))}")
    with without_services(POLICY, UNITS, [name for name in servers if name in lacking]):
        apt_get("apt-get", "update")
        apt_get(*INSTALL, *packages)


def apt_get(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    code = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, check=False).returncode  # noqa: S603 - our own commands
    if code != 0:
        raise SystemNotReady(f"{' '.join(command)} failed (exit status {code}); the reason is above")


@contextmanager
def without_services(policy: Path, units: Path, names: list[str]) -> Iterator[None]:
    """Services installed in the block do not start, now or at the next boot. `systemctl unmask` enables them again.
    An existing policy stays as it is."""
    if units.is_dir():
        for unit in (units / f"{name}.service" for name in names):
            if not os.path.lexists(unit):
                unit.symlink_to(os.devnull)
    if policy.exists():
        yield
        return
    # 101 is "not allowed" (Debian policy, 9.3.3.1).
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def main() -> int:
    try:
        ensure_system()
    except (SystemNotReady, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; run the same command again to continue.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
