"""A step of a stack of encoder layers, each under torch.utils.checkpoint or plain.

With --memory 1 (malloc maps each tensor on its own) or 2 (glibc's defaults) the answer is not a
time but the bytes by which one step raises the resident peak.
"""

import os
import sys

from serve import arguments, serve, start

options = arguments(layers=24, width=512, heads=8, feedforward=2048, length=512, batch=4,
                    checkpointed=0, memory=0)
# As in bench/claims/checkpoint_peer.cpp. [bytes; None: glibc's default]
MMAP_THRESHOLD = {1: "65536", 2: None}
if options.memory and os.environ.get("MALLOC_ENVIRONMENT") != "set":
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        os.environ.pop(name, None)
    if MMAP_THRESHOLD[options.memory]:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = MMAP_THRESHOLD[options.memory]
    os.environ["MALLOC_ENVIRONMENT"] = "set"
    os.execv(sys.executable, [sys.executable, *sys.argv])
torch = start(options.threads)
from torch.utils.checkpoint import checkpoint  # noqa: E402


class Layer(torch.nn.TransformerEncoderLayer):
    """Attention as torch::nn::TransformerEncoderLayer computes it: with the weights, their mean too."""

    def _sa_block(self, x, attn_mask, key_padding_mask, is_causal=False):
        x, _ = self.self_attn(x, x, x, attn_mask=attn_mask, key_padding_mask=key_padding_mask,
                              need_weights=True)
        return self.dropout1(x)


layers = torch.nn.ModuleList(
    Layer(options.width, options.heads, options.feedforward, dropout=0.1)
    for _ in range(options.layers))


def step(x):
    layers.zero_grad()
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=False) if options.checkpointed else layer(x)
    x.square().mean().backward()


def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def serve_memory():
    step(torch.randn(8, 1, options.width))
    layers.zero_grad()
    x = torch.randn(options.length, options.batch, options.width)
    print("ready", f"torch {torch.__version__}", flush=True)
    sys.stdin.readline()
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    step(x)
    print(resident("VmHWM") - before, flush=True)


if options.memory:
    serve_memory()
else:
    x = torch.randn(options.length, options.batch, options.width)
    serve(f"torch {torch.__version__}", lambda: step(x))
