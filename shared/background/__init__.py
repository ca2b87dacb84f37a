"""Background work: tasks that start again after a failure, and items that are put aside after one."""
