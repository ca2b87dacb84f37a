"""`python -m services.web`."""

from services.web import service, settings
from shared import node


def main() -> None:
    node.run(service.WebService, settings.WebSettings)


if __name__ == "__main__":
    main()
