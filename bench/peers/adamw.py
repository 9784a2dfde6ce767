"""torch.optim.AdamW(fused=True), alone or with GradScaler.unscale_ and clip_grad_norm_ before it."""

from serve import arguments, serve, start

options = arguments(tensors=100, elements=1000, scaled=0)
torch = start(options.threads)

parameters = [torch.nn.Parameter(torch.randn(options.elements)) for _ in range(options.tensors)]
for parameter in parameters:
    parameter.grad = torch.randn(options.elements)
optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

# As in gradient_pass.py: what a scale of 0.5 doubles, clipping to 1 halves again.
scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
scaler.scale(torch.ones(()))


def scaled_step():
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
    scaler.step(optimizer)


version = f"torch {torch.__version__}"
if options.scaled:
    serve(version, scaled_step, prepare=lambda: scaler.update(0.5))
else:
    serve(version, optimizer.step)
