"""Builds this checkout's images as an operator behind a proxy does, but with the llama.cpp wheel that this machine already has."""

import functools
import hashlib
import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deploy import compose_file
from tests.deploy.real.docker_engine import DockerEngine
from tools.engine import wheel

#: The same port in each run, if it is free: a build with another URL installs the wheel again.
WHEEL_PORT = 48713
REGISTRY = "localhost"
#: target -> the name of its image.
TARGETS = {
    "aimesh": "aimesh",
    "web": "aimesh-web",
    "worker": "aimesh-worker",
    "worker-cuda": "aimesh-worker-cuda",
    "dht": "aimesh-dht",
    "backup": "aimesh-backup",
}


def version() -> str:
    text = (compose_file.ROOT / "sdk/python/src/aimesh/version.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(found)


def tag_of(target: str) -> str:
    return f"{REGISTRY}/{TARGETS[target]}:{version()}"


def build(engine: DockerEngine, target: str, tag: str, wheel: str, context: Path = compose_file.ROOT) -> str:
    words = ["build", "--network=host", "--progress=plain", "--file", str(context / "deploy/docker/Dockerfile")]
    words += ["--target", target, "--tag", tag, "--build-arg", f"VERSION={version()}", "--build-arg", "REVISION=test"]
    certificates = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    words += ["--secret", f"id=ca,src={certificates}", "--build-arg", f"ENGINE_WHEEL={wheel}"]
    return engine.docker(*words, str(context))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _serve(handler: Callable[..., http.server.SimpleHTTPRequestHandler]) -> http.server.ThreadingHTTPServer:
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", WHEEL_PORT), handler)
    except OSError:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)


@contextmanager
def engine_wheel() -> Iterator[str]:
    """Serve a llama.cpp wheel on loopback and yield its URL. Compiling one takes ten minutes."""
    found = wheel.ensure()
    handler = functools.partial(_Quiet, directory=str(found.parent))
    with _serve(handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            digest = hashlib.sha256(found.read_bytes()).hexdigest()
            yield f"http://127.0.0.1:{server.server_port}/{found.name}#sha256={digest}"
        finally:
            server.shutdown()


def ids_of_layers(engine: DockerEngine, tag: str) -> list[str]:
    return engine.docker("inspect", "--format", "{{range .RootFS.Layers}}{{.}} {{end}}", tag).split()


def bytes_above(engine: DockerEngine, tag: str, base: str) -> int:
    """Return how many bytes an image adds to its base."""
    sizes = [int(engine.docker("inspect", "--format", "{{.Size}}", each)) for each in (tag, base)]
    return sizes[0] - sizes[1]
