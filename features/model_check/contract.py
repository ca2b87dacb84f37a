"""gateway: keeps how many scripted tool calls a model got right."""

from typing import Annotated

from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method, Nothing
from shared.config_documents import ServedName
from shared.protocol.agent_requirements import SCRIPTED_CALLS
from shared.types import ModelName

#: Of one model: machines whose servers tell no digest have one each.
MAX_BUILDS = 1000

#: A digest, or a node or provider with the name of the model there.
Build = Annotated[str, Meta(min_length=1, max_length=300)]
RightCalls = Annotated[int, Meta(ge=0, le=SCRIPTED_CALLS)]


class FindModelBuilds(Body, frozen=True):
    model: ServedName


class ModelBuilds(Body, frozen=True, omit_defaults=False):
    """What workers serve under a model's name now. Another digest is another build."""

    model: ModelName
    builds: Annotated[tuple[Build, ...], Meta(max_length=MAX_BUILDS)]


class RecordModelCheck(Body, frozen=True):
    """Keep a result for the builds that are still served."""

    model: ServedName
    #: Those that were found before the check: what came later was not checked.
    builds: Annotated[tuple[Build, ...], Meta(min_length=1, max_length=MAX_BUILDS)]
    right_calls: RightCalls


find_model_builds = Method("gateway.findModelBuilds", FindModelBuilds, ModelBuilds, callers=PEOPLE)
record_model_check = Method("gateway.recordModelCheck", RecordModelCheck, Nothing, callers=PEOPLE)
