"""``python -m services.inference``: run a worker."""

from services.inference import service, settings
from shared import node


def main() -> None:
    node.run(service.InferenceService, settings.InferenceSettings)


if __name__ == "__main__":
    main()
