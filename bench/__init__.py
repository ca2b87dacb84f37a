"""One script per claim. Each prints a table of figures measured in one run, against a named rival where there is one.

`python -m bench.NAME [--quick] [--time-limit SECONDS] [--json FILE] [--save FILE]`. Speeds are ratios: both sides ran on the same machine
within the same minute. A bench that runs out of its time prints the rows that it has, names what is missing, and exits with 124.
`python -m bench.baseline` records the ratios of the short forms and checks them.
"""
