"""Runs the gateway until SIGTERM: `python -m services.gateway`."""

from services.gateway import service, settings
from shared import large_blocks, node


def main() -> None:
    large_blocks.give_back()
    node.run(service.GatewayService, settings.GatewaySettings)


if __name__ == "__main__":
    main()
