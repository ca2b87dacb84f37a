"""What a machine's own servers add."""

from shared.features import Feature, WorkerBackend

FEATURE = Feature(needs=frozenset({"remote_servers"}), backends=(WorkerBackend(name="front", variables=("FRONT_SERVER_FILE",)),))
