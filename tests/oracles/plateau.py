"""Writes data/plateau.txt: when torch.optim.lr_scheduler.ReduceLROnPlateau lowers the rates.

    python plateau.py > data/plateau.txt

Two parameter groups with the base rates 0.1 and 0.02; 1,000 calls with a metric that is a formula exact
in binary. A case is a line `case <name>`, and a line `<call> <rate> <rate>` for every call after which
the rates are others than before.
"""

import warnings

import torch

RATES = (0.1, 0.02)


def metric(t):
    return 2.0 / (1 + t // 25) + ((t * 37) % 101) / 1024


def run(name, sign=1.0, **options):
    params = [torch.zeros(1, requires_grad=True) for _ in RATES]
    opt = torch.optim.SGD([{"params": [p], "lr": r} for p, r in zip(params, RATES)])
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, **options)
    print("case", name)
    before = list(RATES)
    for t in range(1000):
        scheduler.step(sign * metric(t))
        now = [group["lr"] for group in opt.param_groups]
        if now != before:
            print(t, *map(repr, now))
        before = now


warnings.simplefilter("ignore")
run("defaults")
run("patient", patience=40, factor=0.5)
run("impatient", patience=0, factor=0.9, cooldown=7, min_lr=0.001)
run("cooldown", patience=5, cooldown=30, factor=0.7, threshold=0.05)
run("max_rel", sign=-1.0, mode="max", patience=12, factor=0.6)
run("max_abs", sign=-1.0, mode="max", threshold_mode="abs", threshold=0.02, patience=12, factor=0.6)
run("min_abs", threshold_mode="abs", threshold=0.01, patience=20, factor=0.8, cooldown=3)
run("min_lr_per_group", patience=4, factor=0.5, min_lr=[0.003, 0.004])
run("eps", patience=2, factor=0.5, eps=1e-3)
