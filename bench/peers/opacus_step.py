"""Steps of SGD by Opacus, plain and private, of the networks of bench/claims/models/private_task.cpp.

--task: see TASKS. --mode: see MODES; 0 is the plain step that the others are compared with. Noise comes from
torch.normal, as is Opacus' default.
"""

import math
import sys
import warnings

from serve import arguments, serve, start

TASKS = ["mlp", "cnn", "cnn_group_norm", "transformer"]
MODES = ["plain", "hooks", "ew", "ghost"]

options = arguments(task=0, mode=0, small=0)
torch = start(options.threads)
warnings.simplefilter("ignore")
try:
    import opacus
except ImportError:
    print("missing", flush=True)
    sys.exit(0)
nn = torch.nn
task, mode = TASKS[options.task], MODES[options.mode]
small = bool(options.small)


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer of plain layers: Opacus has no rule for nn.MultiheadAttention.

    Attention is computed as in LibTorch's: product, softmax, product. Batch first, as expanded weights
    ask for.
    """

    def __init__(self, width, heads, feedforward):
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.first = nn.Linear(width, feedforward)
        self.second = nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        batch, length, width = x.shape
        size = width // self.heads
        q, k, v = (part.view(batch, length, self.heads, size).transpose(1, 2)
                   for part in self.projection(x).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(size), -1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width)))
        return self.norm2(x + self.second(torch.relu(self.first(x))))


class Classifier(nn.Module):
    def __init__(self, width, length):
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        self.register_buffer("positions", 0.02 * torch.randn(1, length, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, 4, 4 * width) for _ in range(2)))
        self.head = nn.Linear(width, 10)

    def forward(self, tokens):
        return self.head(self.layers(self.embedding(tokens) + self.positions).mean(1))


def network():
    """The network and its input."""
    if task == "mlp":
        width, batch = (32, 8) if small else (512, 256)
        return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                             nn.Linear(width, 10)), torch.randn(batch, 784)
    if task == "transformer":
        width, length, batch = (16, 8, 4) if small else (128, 128, 32)
        return Classifier(width, length), torch.randint(1000, (batch, length))
    layers = []
    for inputs, outputs in ((1, 32), (32, 64)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
        if task == "cnn_group_norm":
            layers.append(nn.GroupNorm(8, outputs))
        layers.append(nn.ReLU())
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 14 * 14, 10)]
    return nn.Sequential(*layers), torch.randn(4 if small else 256, 1, 28, 28)


torch.manual_seed(20260101)
model, x = network()
y = torch.randint(10, (len(x),))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
criterion = nn.CrossEntropyLoss()
if mode != "plain":
    # As in bench/claims/private_step.cpp: multiplier 1, norm 1.
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    private = opacus.PrivacyEngine().make_private(
        module=model, optimizer=optimizer, criterion=criterion, data_loader=data,
        noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=False, grad_sample_mode=mode)
    if mode == "ghost":
        model, optimizer, criterion, _ = private
    else:
        model, optimizer, _ = private


def step():
    optimizer.zero_grad(set_to_none=True)
    criterion(model(x), y).backward()
    optimizer.step()


serve(f"opacus {opacus.__version__}, torch {torch.__version__}", step)
