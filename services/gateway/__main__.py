"""Runs the gateway until SIGTERM: `python -m services.gateway`."""

from services.gateway import service, settings
from shared import node


def main() -> None:
    node.run(service.GatewayService, settings.GatewaySettings)


if __name__ == "__main__":
    main()
