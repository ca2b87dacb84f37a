"""What tests/test_architecture.py has to know of autoscaling."""

READS_ENVIRONMENT = {"features/autoscaling/metrics/hooks.py": "hands the machine's variables on to a hook, without secrets"}
