"""One script per claim. Each prints a table of figures measured in one run, against a named rival where there is one.

`python -m bench.NAME [--json FILE]`. Speeds are ratios: both sides ran on the same machine within the same minute.
"""
