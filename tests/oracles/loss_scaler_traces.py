"""Traces of torch.amp.GradScaler that tests/precision/loss_scaler_test.cpp replays.

    python loss_scaler_traces.py > data/loss_scaler_traces.txt

A scenario is a few lines of what to do (scaler, train, poison, set, reload), then one `step` line for
each step: its number, scale and growth tracker after update(), which optimizers stepped, and the
parameters. The model is y = x w + b, its data exact in binary, so that both sides see the same bits.
"""

import torch

SHAPE_W = (3, 2)


def batch(step, micro):
    """Inputs [4, 3] and targets [4, 2]: small multiples of 1/4."""
    seed = step * 31 + micro * 13
    x = [[((seed + i * 7 + j * 5) % 11 - 5) / 4 for j in range(3)] for i in range(4)]
    y = [[((seed + i * 3 + j * 8) % 7 - 3) / 4 for j in range(2)] for i in range(4)]
    return torch.tensor(x), torch.tensor(y)


def make_optimizers(kind, w, b):
    def sgd(params):
        return torch.optim.SGD(params, lr=0.125, momentum=0.5)

    def adamw(params):
        return torch.optim.AdamW(params, lr=0.0625)

    if kind == "both":
        return [sgd([w]), adamw([b])]
    return [{"sgd": sgd, "adamw": adamw}[kind]([w, b])]


class Scenario:
    def __init__(self, name, scaler=(65536.0, 2.0, 0.5, 2000), optimizer="sgd", clip=0.0, micro=1, steps=10,
                 poison=(), new_scale=(), reload=()):
        self.name, self.scaler, self.optimizer, self.clip = name, scaler, optimizer, clip
        self.micro, self.steps = micro, steps
        self.poison, self.new_scale, self.reload = poison, new_scale, reload

    def write_what_to_do(self):
        print("scenario", self.name)
        print("scaler", *self.scaler)
        print("train", self.optimizer, self.clip, self.micro, self.steps)
        for what, events in (("poison", self.poison), ("set", self.new_scale)):
            for event in events:
                print(what, *event)
        for step in self.reload:
            print("reload", step)

    def make_scaler(self):
        init, growth, backoff, interval = self.scaler
        return torch.amp.GradScaler("cpu", init_scale=init, growth_factor=growth, backoff_factor=backoff,
                                    growth_interval=interval)

    def run(self):
        self.write_what_to_do()
        w = (torch.arange(6).reshape(SHAPE_W) / 8 - 0.25).requires_grad_()
        b = torch.tensor([0.5, -0.5]).requires_grad_()
        optimizers = make_optimizers(self.optimizer, w, b)
        stepped = [False] * len(optimizers)
        for i, optimizer in enumerate(optimizers):
            optimizer.register_step_post_hook(lambda *_, i=i: stepped.__setitem__(i, True))
        scaler = self.make_scaler()
        for step in range(self.steps):
            stepped[:] = [False] * len(optimizers)
            for optimizer in optimizers:
                optimizer.zero_grad()
            for micro in range(self.micro):
                x, y = batch(step, micro)
                loss = ((x @ w + b - y) ** 2).mean() / self.micro
                scaler.scale(loss).backward()
            for at, which, value in self.poison:
                if at == step:
                    {"w": w, "b": b}[which].grad.view(-1)[0] = float(value)
            if self.clip:
                for optimizer in optimizers:
                    scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_([w, b], self.clip)
            for optimizer in optimizers:
                scaler.step(optimizer)
            given = [(value, form) for at, value, form in self.new_scale if at == step]
            if given:
                value, form = given[0]
                scaler.update(torch.tensor(value) if form == "tensor" else value)
            else:
                scaler.update()
            state = scaler.state_dict()
            values = torch.cat([w.detach().view(-1), b.detach()]).tolist()
            flags = "".join(str(int(s)) for s in stepped)
            print("step", step, repr(state["scale"]), state["_growth_tracker"], flags, *map(repr, values))
            if step in self.reload:
                scaler = self.make_scaler()
                scaler.load_state_dict(state)


SCENARIOS = [
    Scenario("growth", scaler=(4.0, 2.0, 0.5, 2), steps=9),
    Scenario("backoff", poison=[(0, "w", "inf"), (1, "b", "-inf"), (5, "w", "nan"), (6, "w", "inf")]),
    Scenario("growth_and_backoff", scaler=(4.0, 2.0, 0.25, 2), steps=14,
             poison=[(2, "w", "inf"), (7, "b", "nan"), (8, "b", "nan")]),
    Scenario("factors_that_are_no_powers_of_two", scaler=(1000.0, 1.5, 0.3, 3), optimizer="adamw", steps=16,
             poison=[(4, "w", "nan"), (11, "b", "inf")]),
    Scenario("adamw", scaler=(65536.0, 2.0, 0.5, 4), optimizer="adamw", steps=14,
             poison=[(1, "w", "inf"), (9, "w", "inf")]),
    Scenario("two_optimizers_one_overflows", scaler=(128.0, 2.0, 0.5, 3), optimizer="both", steps=12,
             poison=[(2, "w", "inf"), (5, "b", "inf"), (6, "w", "nan"), (6, "b", "nan")]),
    Scenario("new_scale", scaler=(64.0, 2.0, 0.5, 3), steps=12, poison=[(8, "w", "inf")],
             new_scale=[(1, 1024.0, "float"), (5, 48.0, "tensor")]),
    Scenario("unscale_and_clip", scaler=(256.0, 2.0, 0.5, 4), clip=0.5, steps=12, poison=[(3, "b", "inf")]),
    Scenario("unscale_and_clip_two_optimizers", scaler=(256.0, 2.0, 0.5, 4), optimizer="both", clip=0.25,
             steps=10, poison=[(3, "b", "inf")]),
    Scenario("accumulation", scaler=(512.0, 2.0, 0.5, 2), micro=3, optimizer="adamw", poison=[(4, "w", "inf")]),
    Scenario("scale_at_the_end_of_float32", scaler=(2.0**125, 2.0, 0.5, 1), steps=12),
    Scenario("scale_near_zero", scaler=(2.0**-120, 2.0, 0.5, 3), steps=12,
             poison=[(i, "w", "inf") for i in range(6)]),
    Scenario("saved_and_loaded", scaler=(8.0, 2.0, 0.5, 4), steps=14, poison=[(1, "w", "inf")], reload=[2, 3, 8]),
]

if __name__ == "__main__":
    for scenario in SCENARIOS:
        scenario.run()
