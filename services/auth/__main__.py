"""Run auth until SIGTERM: `python -m services.auth`."""

from services.auth import service, settings
from shared import node


def main() -> None:
    node.run(service.AuthService, settings.AuthSettings)


if __name__ == "__main__":
    main()
