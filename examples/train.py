"""Train a MoE in a loop of your own: router losses exact over micro-batches, two stages, a checkpoint as it was.

python examples/train.py SRC OUT
"""

import sys

import torch

import moesaic
from moesaic.losses.dpsl import Dpsl
from moesaic.losses.router_z import RouterZ
from moesaic.training import RouterObjective
from moesaic.training.freezing import Freezing
from moesaic.training.stages import two_stages

source, out = sys.argv[1:]
start = moesaic.upcycle(source, f"{out}-step-0", moesaic.MoESpec(num_experts=4, top_k=2)).folder
model = moesaic.load(start).train()
steps, micro_batches = 20, 2
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
objective = RouterObjective([Dpsl(alpha=0.25), RouterZ()]).attach(model)
freezing = Freezing(model, two_stages(tau=0.1), steps)
draw = torch.Generator().manual_seed(0)


def sequences(count: int = 4, length: int = 32) -> torch.Tensor:
    """Return sequences [count, length] that count upwards by a step of their own."""
    first, by = (torch.randint(1, 8, (count, 1), generator=draw) for _ in range(2))
    return (first + by * torch.arange(length)) % 100


for step in range(steps):
    freezing.at(step)
    batches = [{"input_ids": ids, "labels": ids} for ids in (sequences() for _ in range(micro_batches))]
    objective.expect(batches)  # one loss over the tokens of all; leave it out where a step is one batch
    total = 0.0
    for batch in batches:
        loss = model(**batch).loss / micro_batches
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 4:
        terms = objective.log()
        dpsl = [value for name, value in terms.items() if name.startswith("router/dpsl/")]
        print(f"step {step + 1}: loss {total:.3f}, DPSL {sum(dpsl) / len(dpsl):.4f} (mean over layers)")

freezing.remove()
objective.detach()
model.save_pretrained(out)
