"""What tests/services/test_second_wall.py has to know of the check of models."""

OPEN = {"gateway": {"model_checks": "digests and numbers"}}
