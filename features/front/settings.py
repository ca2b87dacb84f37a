"""The setting of a worker for a server of its machine."""

from pathlib import Path
from typing import Annotated

from shared.config import Settings, Variable


class FrontSettings(Settings, frozen=True, kw_only=True):
    server_file: Annotated[
        Path | None,
        Variable("FRONT_SERVER_FILE", "what its owner shares of a server on this machine, for INFERENCE_BACKEND=front; aicli writes it"),
    ] = None
    choice_file: Annotated[
        Path | None,
        Variable("FRONT_CHOICE_FILE", "what its owner shares of this machine; the worker tells which servers and models are new there"),
    ] = None


#: Who reads them.
SETTINGS = {"inference": FrontSettings}
