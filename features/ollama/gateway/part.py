"""What Ollama's API adds to the gateway."""

from features.ollama.gateway.ollama_routes import OllamaRoutes
from services.gateway.features import Built, GatewayPart, Site


def _build(site: Site) -> Built:
    return Built(routes=OllamaRoutes(site.runs, site.catalogue).routes())


PART = GatewayPart(_build)
