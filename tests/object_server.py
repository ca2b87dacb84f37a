"""A real S3 server (SeaweedFS) with credentials, for the tests of the object store."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stack import processes
from tests.testnet import free_port

BUCKET = "aimesh-backup"
_START_SECONDS = 60
#: SeaweedFS gives each a second port for gRPC, by default 10,000 above the first, which may be taken; ``running`` sets a free one.
_PROGRAMS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, slots=True)
class ObjectServer:
    url: str
    credentials: dict[str, str]

    @property
    def address(self) -> str:
        return f"s3://{BUCKET}/mesh"


@contextmanager
def running() -> Iterator[ObjectServer]:
    with tempfile.TemporaryDirectory(prefix="aimesh-s3-") as name:
        folder = Path(name)
        key, secret = "AKIATEST", "a-secret-of-the-tests"
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        (folder / "data").mkdir()
        options, s3_port = [f"-s3.config={folder / 's3.json'}"], 0
        for program in _PROGRAMS:
            s3_port = free_port()
            options += [f"-{program}.port={s3_port}", f"-{program}.port.grpc={free_port()}"]
        command = [Path(sys.executable).parent / "weed", f"-logdir={folder}", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1"]
        command += [
            "-ip.bind=127.0.0.1",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=32",
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *options,
        ]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.environ["PATH"], "HOME": name},
                preexec_fn=processes.dies_with_parent(signal.SIGKILL, os.getpid()),  # noqa: PLW1509 - fork from the main thread
            )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{s3_port}"
            credentials = {
                "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": url,
            }  # fmt: skip
            _wait_for(url, server, folder / "log")
            yield ObjectServer(url, credentials)
        finally:
            server.kill()
            server.wait(timeout=30)


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while True:
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < give_up_at, log.read_text(errors="replace")[-2000:]
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:  # the server is up and requires credentials
            return
        except OSError:
            time.sleep(0.05)
