"""What Ollama's API adds."""

from shared.features import Feature, HttpApi

API = HttpApi(prefix="/ollama/", vendor="Ollama", is_at_root=True)
FEATURE = Feature(http_api=API)
