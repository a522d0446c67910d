"""Upcycle a dense model in Python, with one's own choice of methods.

python examples/upcycle.py SRC OUT
"""

import sys

import moesaic
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.routers.orthogonal import Orthogonal

source, out = sys.argv[1:]
made = moesaic.upcycle(
    source,
    out,
    moesaic.MoESpec(num_experts=4, top_k=2, layers=moesaic.Layers("last:2")),
    experts=DropUpcycling(ratio=0.25),
    router=Orthogonal(),
    seed=7,
)
assert made.certificate is not None
for quantity, value in made.certificate.rows():
    print(f"{quantity:24} {value}")
