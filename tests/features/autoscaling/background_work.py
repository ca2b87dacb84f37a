"""What tests/test_background_work.py has to know of autoscaling."""

OTHER_TASKS = {"features/autoscaling/metrics/scaling_module.py": "of a look, which is an attempt"}
OTHER_LOOPS: dict[str, str] = {}
