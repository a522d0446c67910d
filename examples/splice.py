"""Put MoE layers into a model's own class, then watch its routers: works for any class whose FFNs are found.

python examples/splice.py SRC OUT
"""

import sys

import torch

import moesaic
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.modeling.spliced import MoELayer

source, out = sys.argv[1:]
spec = moesaic.MoESpec(num_experts=4, top_k=2, layers=moesaic.Layers("every:2"))
moesaic.upcycle(source, out, spec, experts=SparseUpcycling(), target="splice")

model = moesaic.load(out)  # or AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True), without moesaic
for name, layer in model.named_modules():
    if isinstance(layer, MoELayer):
        layer.router.register_forward_hook(
            lambda _router, _args, logits, name=name: print(name, "load", logits.topk(2).indices.flatten().bincount())
        )
with torch.no_grad():
    model(input_ids=torch.randint(3, 100, (1, 32), generator=torch.Generator().manual_seed(0)))
