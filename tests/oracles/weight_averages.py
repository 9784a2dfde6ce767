"""Writes data/weight_averages.txt: what torch.optim.swa_utils makes of a known sequence of weights.

    python weight_averages.py > data/weight_averages.txt

A float64 model of a Linear(3, 2), a BatchNorm1d(2) and a second one; its weights and buffers are set by
formulas before each update, so that the reader needs no training. A case is a line `case <name>` and lines
`<step> <values>`: the averaged parameters, then the averaged buffers, in the model's order. Warm-ups of the
exponential average are not in torch; they run here through avg_fn with their published formulas.
"""

import math

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn, update_bn

SHOWN = [1, 2, 3, 5, 10, 30]


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).double()


def set_weights(model, step):
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            for i in range(p.numel()):
                p.view(-1)[i] = math.cos(0.3 * step + 1.1 * i + 0.5 * k)
        for k, b in enumerate(model.buffers()):
            if b.is_floating_point():
                for i in range(b.numel()):
                    b.view(-1)[i] = 1 + 0.5 * math.sin(0.2 * step + 0.7 * i + k)
            else:
                b.fill_(step)


def values(model):
    return [x for t in list(model.parameters()) + list(model.buffers()) for x in t.double().view(-1).tolist()]


def run(name, start=0, period=1, **options):
    model = make_model()
    averaged = AveragedModel(model, **options)
    print("case", name)
    for step in range(1, max(SHOWN) + 1):
        set_weights(model, step)
        if step >= start and (step - start) % period == 0:
            averaged.update_parameters(model)
        if step in SHOWN and averaged.n_averaged > 0:
            print(step, *map(repr, values(averaged.module)))


def ratio(decay):
    def average(averaged, current, n):
        d = min(decay, (1 + int(n)) / (10 + int(n)))
        return d * averaged + (1 - d) * current
    return average


def power(decay, inv_gamma, exponent):
    def average(averaged, current, n):
        d = min(decay, 1 - (1 + int(n) / inv_gamma) ** -exponent)
        return d * averaged + (1 - d) * current
    return average


def recalibrated():
    """update_bn over three batches of different sizes."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.ReLU(),
                                torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, momentum=0.3)).double()
    set_weights(model, 4)
    batches = [torch.tensor([[math.sin(1.7 * i + 0.9 * j + b) for j in range(3)] for i in range(5 + b)],
                            dtype=torch.float64) for b in range(3)]
    update_bn(batches, model)
    print("case recalibrated")
    print(0, *map(repr, [x for t in model.buffers() for x in t.double().view(-1).tolist()]))


run("ema", avg_fn=get_ema_avg_fn(0.9))
run("ema_multi", multi_avg_fn=get_ema_multi_avg_fn(0.99))
run("ema_buffers", avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
run("ema_ratio", avg_fn=ratio(0.8))
run("ema_power", avg_fn=power(0.95, 2.0, 0.75))
run("ema_start_period", start=3, period=4, avg_fn=get_ema_avg_fn(0.7))
run("swa", avg_fn=get_swa_avg_fn())
run("swa_default")
run("swa_start_period", start=5, period=5)
run("swa_buffers", use_buffers=True)
recalibrated()
