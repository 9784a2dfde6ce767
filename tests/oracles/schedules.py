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


def run(name, make, edges=(), cycled=None, last=STEPS, kind=SGD, **options):
    """The scheduler's own recursion, step by step."""
    opt = optimizer(kind, **options)
    scheduler = make(opt)
    print("case", name)
    for step in range(last + 1):
        if step in shown(edges):
            values = [group["lr"] for group in opt.param_groups]
            if cycled:
                values.append(cycled(opt.param_groups[0]))
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
run("cosine_restarts", lambda o: lrs.CosineAnnealingWarmRestarts(o, 150), [150, 300, 900])
run("cosine_restarts_longer", lambda o: lrs.CosineAnnealingWarmRestarts(o, 60, 3, eta_min=0.002), [60, 240, 780])
run("linear", lambda o: lrs.LinearLR(o, 1.0, 0.1, 800), [800])
run("linear_to_zero", lambda o: lrs.LinearLR(o, 0.9, 0.0, 700), [700])
run("polynomial", lambda o: lrs.PolynomialLR(o, 900, 2.5), [900])
run("polynomial_line", lambda o: lrs.PolynomialLR(o, 1000), [1000])
run("exponential", lambda o: lrs.ExponentialLR(o, 0.995))
run("exponential_growth", lambda o: lrs.ExponentialLR(o, 1.004))
run("step", lambda o: lrs.StepLR(o, 90, 0.5), [90, 180, 990])
run("multi_step", lambda o: lrs.MultiStepLR(o, [10, 300, 301, 800], 0.2), [10, 300, 800])
run("constant_exponential", lambda o: sequential(
    o, lambda x: lrs.ConstantLR(x, 0.1, 1000), lambda x: lrs.ExponentialLR(x, 0.99), 250), [250])
run("step_warmup_restarts", lambda o: lrs.SequentialLR(o, [
    lrs.LinearLR(o, 0.2, 1.0, 50), lrs.StepLR(o, 40, 0.7), lrs.CosineAnnealingLR(o, 700)], [50, 300]), [50, 300])
run("product", lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.1, 200), lrs.ExponentialLR(o, 0.998)]), [200])
run("product_of_three", lambda o: lrs.ChainedScheduler([
    lrs.LinearLR(o, 0.05, 1.0, 100), lrs.StepLR(o, 250, 0.3), lrs.PolynomialLR(o, 2000, 0.5)]), [100, 250, 750])


def one_cycle(name, last=STEPS - 1, kind=SGD, options=None, cycled=lambda g: g["momentum"], **cycle):
    run(name, lambda o: lrs.OneCycleLR(o, list(RATES), **{"total_steps": STEPS, **cycle}), [299, 300, 598, 599],
        cycled, last, kind, **(options or {"momentum": 0.9}))


one_cycle("one_cycle")
one_cycle("one_cycle_adamw", kind=AdamW, options={"betas": (0.9, 0.99)}, cycled=lambda g: g["betas"][0])
one_cycle("one_cycle_linear", kind=RMSprop, anneal_strategy="linear", pct_start=0.4, base_momentum=0.6, div_factor=10.0)
one_cycle("one_cycle_three", three_phase=True, final_div_factor=100.0)
one_cycle("one_cycle_three_linear", three_phase=True, anneal_strategy="linear", pct_start=0.25, max_momentum=0.9)
one_cycle("one_cycle_down_only", pct_start=0.0)
one_cycle("one_cycle_up_only", pct_start=1.0, total_steps=321, last=320)
one_cycle("one_cycle_rate_only", cycle_momentum=False, cycled=None)
run("lambda", lambda o: lrs.LambdaLR(o, lambda t: 1 / (1 + 0.01 * t)))
