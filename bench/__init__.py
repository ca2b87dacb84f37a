"""Benchmarks: each module prints a table of figures from one run, against a named rival if there is one.

`python -m bench.NAME [--quick] [--only PART …] [--time-limit SECONDS] [--json FILE]`; `--help` lists the amounts of a bench.
Speeds are compared as ratios: both sides ran on the same machine within the same minutes. A bench that runs out of time prints its rows,
names what is missing, and exits with 124. `python -m bench.baseline` records the ratios of the short forms and checks them.
"""
