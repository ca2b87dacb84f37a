"""gateway: names the models of a machine's own servers."""

from typing import Annotated

from msgspec import Meta

from shared.api.method import Body, Method
from shared.types import ModelName, Role

MAX_BUILDS = 256


class Build(Body, frozen=True):
    """A model as a server has it."""

    name: ModelName
    #: Empty if the server doesn't say.
    digest: Annotated[str, Meta(max_length=64)] = ""
    quantization: Annotated[str, Meta(max_length=32)] = ""


class NameModels(Body, frozen=True):
    #: Of the calling worker.
    machine: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    builds: Annotated[tuple[Build, ...], Meta(max_length=MAX_BUILDS)]


class ModelNames(Body, frozen=True, omit_defaults=False):
    """Under which name the worker offers each of the builds."""

    names: Annotated[tuple[ModelName, ...], Meta(max_length=MAX_BUILDS)]


name_models = Method("gateway.nameModels", NameModels, ModelNames, callers={Role.WORKER})
