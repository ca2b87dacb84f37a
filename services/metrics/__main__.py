"""`python -m services.metrics`."""

from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import node


def main() -> None:
    node.run(MetricsService, MetricsSettings)


if __name__ == "__main__":
    main()
