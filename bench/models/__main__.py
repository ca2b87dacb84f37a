"""Measure where models are placed, how fast the page Models is, how often models that share memory are loaded, and how workers copy.

placement  a round of the gateway that decides which machine gets which model
page       the page Models of a large mesh
copying    workers that get one version from an origin and from each other, also if one lies and one leaves; at night with --mib 190
far        the same with a delay between them, and behind two NATs
public     workers that get a model of a public source
beside     the gaps between the tokens of answers beside a copy
one peer   a copy from one peer without a limit, against the raw stream of Node
huge file  the memory that copying 40 GB needs
swap       requests for three models, with memory for one, with and without MODEL_SWAP_SECONDS
"""

from bench import report
from bench.models import copying, page, placement, swap

if __name__ == "__main__":
    report.run(
        __doc__,
        {
            "placement": placement.measure,
            "page": page.measure,
            "swap": swap.measure,
            "copying": copying.measure_spread,
            "far": copying.measure_far,
            "public": copying.measure_public,
            "beside": copying.measure_beside,
            "one peer": copying.measure_pair,
            "huge file": copying.measure_huge,
        },
        limits=(900.0, 90.0),
        quick_parts=("placement", "page"),
        serve=page.serve,
        rounds=(200, 20),
        seconds=(20.0, 3.0),
        pairs=(5, 3),
        workers=(10, 10),
        mib=(64, 16),
    )
