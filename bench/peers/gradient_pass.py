"""GradScaler.unscale_ + clip_grad_norm_(foreach=True)."""

import itertools

from serve import arguments, serve, start

options = arguments(tensors=100, elements=1000)
torch = start(options.threads)

parameters = [torch.nn.Parameter(torch.zeros(options.elements)) for _ in range(options.tensors)]
for parameter in parameters:
    parameter.grad = torch.randn(options.elements)
optimizer = torch.optim.SGD(parameters, lr=0.1)

# As in bench/claims/gradient_pass.cpp: the gradients go from norm 2 to 1 and back.
scaler = torch.amp.GradScaler("cpu", init_scale=0.25)
scaler.scale(torch.ones(()))
bound = itertools.cycle([1.0, 2.0])


def work():
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, next(bound), foreach=True)


serve(f"torch {torch.__version__}", work, prepare=lambda: scaler.update(0.25))
