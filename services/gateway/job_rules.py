"""What jobs ask about their owners and models."""

from typing import Protocol

import msgspec

from shared.api.auth import IdentifyOwner, Principal
from shared.types import ModelName


class BatchCapacity(msgspec.Struct, frozen=True):
    """What a model's workers have for lines of batches."""

    #: Those that run lines of this gateway, and free ones.
    slots: int
    waits_live: bool


class JobRules(Protocol):
    """Every answer is of now: nothing that a job has stored grants rights."""

    async def identify(self, owner: IdentifyOwner) -> Principal:
        """Raises NotAuthenticated or NotAllowed if the owner has no rights any more."""
        ...

    def may_run(self, owner: Principal, model: ModelName) -> bool:
        """Return whether the owner may name the model, whose workers may be away. Raises NotReachable while that isn't known."""
        ...

    def choose_model(self, owner: Principal, named: str | None) -> ModelName:
        """Return the model that a request names, or the default one. Raises UnknownModel."""
        ...

    def runs_as_batch(self, owner: Principal, wants_flex: bool | None) -> bool:
        """Return whether a request waits behind live ones, if it wants to or says nothing. Raises PolicyForbidden."""
        ...

    def line_limit_of(self, owner: Principal) -> int | None:
        """Return how many lines may wait; None: any number."""
        ...

    def file_limit_of(self, owner: Principal) -> int | None:
        """Return how many bytes all files may have; None: any number."""
        ...

    def price_id_of(self, model: ModelName) -> int | None:
        """Return the price that a job keeps; None: each line pays that of its day, because each target of the route has its own."""
        ...

    def find_capacity(self, model: ModelName) -> BatchCapacity | None:
        """Return None if no worker serves the model."""
        ...
