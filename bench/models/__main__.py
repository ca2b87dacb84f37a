"""Measure where models are placed, how fast the page Models is, and how often models that share memory are loaded.

placement  a round of the gateway that decides which machine gets which model
page       the page Models of a large mesh
swap       requests for three models, with memory for one, with and without MODEL_SWAP_SECONDS
"""

from bench import report
from bench.models import page, placement, swap

if __name__ == "__main__":
    report.run(
        __doc__,
        {"placement": placement.measure, "page": page.measure, "swap": swap.measure},
        limits=(600.0, 90.0),
        quick_parts=("placement", "page"),
        serve=page.serve,
        rounds=(200, 20),
        seconds=(20.0, 3.0),
    )
