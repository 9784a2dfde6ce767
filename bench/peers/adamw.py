"""torch.optim.AdamW(fused=True), alone or with GradScaler.unscale_ and clip_grad_norm_ before it."""

import itertools

from serve import arguments, serve, start

options = arguments(tensors=100, elements=1000, scaled=0)
torch = start(options.threads)

parameters = [torch.nn.Parameter(torch.randn(options.elements)) for _ in range(options.tensors)]
for parameter in parameters:
    parameter.grad = torch.randn(options.elements)
optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

# As in bench/claims/gradient_pass.cpp: the gradients go from norm 2 to 1 and back.
scaler = torch.amp.GradScaler("cpu", init_scale=0.25)
scaler.scale(torch.ones(()))
bound = itertools.cycle([1.0, 2.0])


def scaled_step():
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, next(bound), foreach=True)
    scaler.step(optimizer)


version = f"torch {torch.__version__}"
if options.scaled:
    serve(version, scaled_step, prepare=lambda: scaler.update(0.25))
else:
    serve(version, optimizer.step)
