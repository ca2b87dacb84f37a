"""Measure where models are placed, how fast the page Models is, and how often models that share memory are loaded."""

from bench import report
from bench.models import placement

if __name__ == "__main__":
    report.run(__doc__, {"placement": placement.measure}, limits=(300.0, 90.0), rounds=(200, 20))
