"""Files with mails that people read, for tests/test_docs.py."""

from features.alert_channels.metrics import channels

FILES = [channels.__file__]
