"""Writes data/schedules.txt: rates and momenta that torch.optim.lr_scheduler gives over 1,000 steps.

    python schedules.py > data/schedules.txt

Two parameter groups with the base rates 0.1 and 0.02. A case is a line `case <name>`, and lines of a
step and the two rates before that step (with momentum as the last number where the scheduler cycles
it). Of 1,001 steps those are shown at which something may happen: the first, the last, every 37th, and
those around the case's own edges.
"""

import warnings

import torch
from torch.optim import SGD, AdamW, RMSprop
from torch.optim import lr_scheduler as lrs

STEPS = 1000
RATES = (0.1, 0.02)


def optimizer(kind=SGD, **options):
    params = [torch.zeros(1, requires_grad=True) for _ in RATES]
    return kind([{"params": [p], "lr": r} for p, r in zip(params, RATES)], lr=1.0, **options)


def shown(edges):
    steps = set(range(0, STEPS + 1, 37)) | {1, 2, 3, 4, 5, STEPS - 1, STEPS}
    for edge in edges:
        steps |= set(range(edge - 2, edge + 3))
    return sorted(s for s in steps if 0 <= s <= STEPS)


def run(name, make, edges=(), momentum=None, last=STEPS, kind=SGD, **options):
    """The scheduler's own recursion, step by step."""
    opt = optimizer(kind, **options)
    scheduler = make(opt)
    print("case", name)
    for step in range(last + 1):
        if step in shown(edges):
            values = [group["lr"] for group in opt.param_groups]
            if momentum:
                values.append(momentum(opt.param_groups[0]))
            print(step, *(repr(float(v)) for v in values))
        opt.step()
        if step < last:
            scheduler.step()


def sequential(opt, first, second, at):
    return lrs.SequentialLR(opt, [first(opt), second(opt)], milestones=[at])


warnings.simplefilter("ignore")
run("linear_warmup", lambda o: lrs.LinearLR(o, 0.01, 1.0, 200), [200])
run("constant_warmup", lambda o: lrs.ConstantLR(o, 0.25, 300), [300])
run("cosine", lambda o: lrs.CosineAnnealingLR(o, 1000))
run("cosine_short", lambda o: lrs.CosineAnnealingLR(o, 400), [400], last=400)
run("cosine_min", lambda o: lrs.CosineAnnealingLR(o, 1000, eta_min=0.005))
run("warmup_cosine", lambda o: sequential(
    o, lambda x: lrs.LinearLR(x, 0.05, 1.0, 120), lambda x: lrs.CosineAnnealingLR(x, 880), 120), [120])
run("lambda", lambda o: lrs.LambdaLR(o, lambda t: 1 / (1 + 0.01 * t)))
