"""Writes data/optimizer_trajectories.txt: parameters along runs of torch.optim in float64.

    python optimizer_trajectories.py > data/optimizer_trajectories.txt

Two parameter groups: the first holds tensors of 5 and 3 elements, the second one of 4 with options
of its own. Starts and gradients are formulas, so that the reader needs no files of them. The tensor of
3 has no gradient at every third step; the learning rate of both groups is multiplied by 0.3 after
step 10.
"""

import math

import torch

CASES = [
    ("AdamW", {"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.0}),
    ("AdamW", {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "amsgrad": 1}, {"lr": 0.01, "amsgrad": 1}),
    ("Adam", {"lr": 0.02}, {"lr": 0.05, "weight_decay": 0.2}),
    ("Adam", {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1, "amsgrad": 1},
     {"lr": 0.01, "amsgrad": 1}),
    ("SGD", {"lr": 0.05}, {"lr": 0.02, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}, {"lr": 0.02, "momentum": 0.5}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": 1}, {"lr": 0.01}),
    ("Adagrad", {"lr": 0.1}, {"lr": 0.05, "lr_decay": 0.02}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1, "eps": 1e-3, "initial_accumulator_value": 0.2},
     {"lr": 0.05, "initial_accumulator_value": 0.2}),
]
SIZES = [5, 3, 4]
SHOWN = [1, 2, 3, 10, 11, 30]


def start(k, i):
    return math.cos(1.1 * i + 0.5 * k)


def gradient(k, i, step):
    return math.sin(0.7 * i + 1.3 * step + k) * (1 + 0.1 * step)


def python_options(options):
    result = dict(options)
    betas = (result.pop("beta1", 0.9), result.pop("beta2", 0.999))
    if "beta1" in options:
        result["betas"] = betas
    for flag in ("amsgrad", "nesterov"):
        if flag in result:
            result[flag] = bool(result[flag])
    return result


def run(name, first, second):
    params = [
        torch.tensor([start(k, i) for i in range(n)], dtype=torch.float64).requires_grad_()
        for k, n in enumerate(SIZES)
    ]
    optimizer = getattr(torch.optim, name)(
        [{"params": params[:2], **python_options(first)}, {"params": params[2:], **python_options(second)}],
        foreach=False,
        **({} if name != "SGD" else {"lr": 1.0}),
        **({"initial_accumulator_value": first["initial_accumulator_value"]}
           if "initial_accumulator_value" in first else {}),
    )
    print("optimizer", name)
    for label, options in (("first", first), ("second", second)):
        print(label, *(f"{k} {v}" for k, v in options.items()))
    for step in range(1, max(SHOWN) + 1):
        for k, p in enumerate(params):
            missing = k == 1 and step % 3 == 0
            p.grad = None if missing else torch.tensor(
                [gradient(k, i, step) for i in range(SIZES[k])], dtype=torch.float64)
        optimizer.step()
        if step == 10:
            for group in optimizer.param_groups:
                group["lr"] *= 0.3
        if step in SHOWN:
            print("values", step, *(repr(x) for p in params for x in p.tolist()))


for case in CASES:
    run(*case)
