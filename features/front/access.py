"""Which workers are told under which names to offer their models."""

from shared.access_rules import NODE

METHODS = {"gateway.nameModels": NODE}
ANSWERS = {"gateway.nameModels": "everyone alike"}
