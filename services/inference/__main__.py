"""``python -m services.inference``: run a worker."""

import signal

# While it imports the rest for a second, Ctrl-C ends it without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from services.inference import service, settings  # noqa: E402
from shared import node  # noqa: E402


def main() -> None:
    node.run(service.InferenceService, settings.InferenceSettings)


if __name__ == "__main__":
    main()
