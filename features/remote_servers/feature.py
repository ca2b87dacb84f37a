"""What other servers add."""

from shared.features import Feature, WorkerBackend

FEATURE = Feature(
    backends=(
        WorkerBackend(name="ollama", variables=("OLLAMA_URL", "OLLAMA_KEEP_ALIVE")),
        WorkerBackend(
            name="openai",
            variables=("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_UPSTREAMS", "OPENAI_UPSTREAM_KEYS", "REMOTE_MODEL_HOSTS"),
        ),
        WorkerBackend(name="http", has_catalog=True),
    )
)
