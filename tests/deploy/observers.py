"""The programs of compose.yaml's profile `observability`, and their configurations as the programs read them."""

from pathlib import Path
from typing import Any

import yaml

from tests.deploy import compose_file
from tests.deploy.compose_file import mounted

SERVICES = compose_file.services()
OBSERVERS = {name: service for name, service in SERVICES.items() if service.get("profiles") == ["observability"]}


def file_at(service: str, place: str) -> Path:
    """Return the file of this checkout that the program sees at this path."""
    for where, here in mounted(service).items():
        if Path(place).is_relative_to(where):
            return here / Path(place).relative_to(where)
    raise AssertionError(f"{service}: nothing of this checkout is at {place}")


def option(service: str, name: str) -> str:
    """Return the value of `--name=` or `-name=` in the program's command."""
    (found,) = (word.partition("=")[2] for word in SERVICES[service]["command"] if word.lstrip("-").startswith(f"{name}="))
    return compose_file.resolve(found, {})


def read(service: str, place: str) -> Any:
    return yaml.safe_load(file_at(service, place).read_text(encoding="utf-8"))


COLLECTOR = read("otel-collector", option("otel-collector", "config"))
JAEGER = read("jaeger", option("jaeger", "config"))
LOKI = read("loki", option("loki", "config.file"))
PROMETHEUS = read("prometheus", option("prometheus", "config.file"))
SOURCES = {source["uid"]: source for source in read("grafana", "/etc/grafana/provisioning/datasources/aimesh.yml")["datasources"]}
