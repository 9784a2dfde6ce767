"""FlexAttention's forward, compiled: a causal window, or random blocks of 128, of 8 heads of 64."""

from serve import arguments, serve, start

options = arguments(tokens=4096, random=0, bf16=0)
torch = start(options.threads)
from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402

BLOCK, WINDOW, SHARE = 128, 512, 0.1
tokens = options.tokens


def window(batch, head, query, key):
    return (query >= key) & (query - key < WINDOW)


def random_blocks():
    """As many blocks in each row as bench/claims/attention_flex.cpp takes, its own among them."""
    blocks = tokens // BLOCK
    count = max(1, round(SHARE * blocks))
    generator = torch.Generator().manual_seed(1)
    chosen = torch.zeros(blocks, blocks, dtype=torch.bool)
    for row in range(blocks):
        others = torch.randperm(blocks, generator=generator)
        chosen[row, others[others != row][: count - 1]] = True
        chosen[row, row] = True

    def visible(batch, head, query, key):
        return chosen[query // BLOCK, key // BLOCK]

    return visible


rule = random_blocks() if options.random else window
mask = create_block_mask(rule, 1, 1, tokens, tokens, device="cpu", BLOCK_SIZE=BLOCK)
dtype = torch.bfloat16 if options.bf16 else torch.float32
q, k, v = (torch.randn(1, 8, tokens, 64, dtype=dtype) for _ in range(3))
compiled = torch.compile(flex_attention)


def forward():
    with torch.no_grad():
        compiled(q, k, v, block_mask=mask)


forward()  # compiles
serve(f"torch {torch.__version__}", forward)
