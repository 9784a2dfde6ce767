"""GradScaler.unscale_ + clip_grad_norm_(foreach=True)."""

from serve import arguments, serve, start

options = arguments(tensors=100, elements=1000)
torch = start(options.threads)

parameters = [torch.nn.Parameter(torch.zeros(options.elements)) for _ in range(options.tensors)]
for parameter in parameters:
    parameter.grad = torch.randn(options.elements)
optimizer = torch.optim.SGD(parameters, lr=0.1)

# A loss scale of 0.5 and a bound of 1 leave gradients of norm 1 as they are: each run divides them to
# norm 2 and clips them back, so that every run does all of the work on the same numbers.
scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
scaler.scale(torch.ones(()))


def work():
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)


serve(f"torch {torch.__version__}", work, prepare=lambda: scaler.update(0.5))
