"""`python -m services.gateway`: runs the gateway until SIGTERM."""

from services.gateway import service, settings
from shared import node


def main() -> None:
    node.run(service.GatewayService, settings.GatewaySettings)


if __name__ == "__main__":
    main()
