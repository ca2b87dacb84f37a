"""Pools as the metrics service knows them."""

from features.autoscaling import contract
from shared.types import Credential


class FakeScaling:
    def __init__(self) -> None:
        super().__init__()
        self.scaling = contract.Scaling(())

    def _get_scaling(self, _request: contract.GetScaling, _: Credential | None) -> contract.Scaling:
        return self.scaling


FAKE = FakeScaling
#: Its pages call these when they are opened.
READING = {contract.get_scaling.name}
