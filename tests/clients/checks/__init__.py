"""Checks of clients: one folder a client. Features have such a folder, too."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
