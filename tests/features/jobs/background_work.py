"""What tests/test_background_work.py has to know of jobs."""

OTHER_TASKS = {
    "features/jobs/gateway/batch_work.py": "of a task that is kept",
    "features/jobs/gateway/runner.py": "of a task that is kept; each line is an attempt",
}
OTHER_LOOPS = {
    "features/jobs/gateway/batch_work.py:_work": "each job is an attempt",
    "features/jobs/gateway/batch_work.py:_read": "the pieces of one file",
    "features/jobs/gateway/batch_work.py:_finalize": "the two files of one job",
    "features/jobs/gateway/batch_work.py:_write": "the pages of one file",
    "features/jobs/gateway/line_inputs.py:read": "the parts of one file",
    "features/jobs/gateway/runner.py:_fill": "claims of one model; each line is an attempt",
}
