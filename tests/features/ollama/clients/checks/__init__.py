"""Checks of clients, with those of tests/clients/checks."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
