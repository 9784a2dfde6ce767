"""Output dtypes of ops under torch.autocast on the CPU, for tests/precision/autocast_test.cpp.

    python autocast_table.py > data/autocast_table.txt

The first line is LibTorch's version. Every other line is an op of the dispatcher, its arguments, the
dtype of the scope, the dtypes of the inputs, and the dtype of the (first) output or `error`.

Arguments: f:2,3 a floating tensor of halves; e:3 the matrix 2·I; i:2,3 and m:2,3 int64 and bool zeros;
F:2,3;2,3 and I:1;2 lists of f and i; n:1 an int; d:0.5 a float; l:1,1 a list of ints; b:1 a bool; s:text
a string; none: no value.
Inputs: the first floating tensor has the first dtype, the others the second.
"""

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NAMES.update({torch.int64: "i64", torch.bool: "bool", torch.complex64: "c64", torch.complex128: "c128"})

OPS = """
mm f:2,3 f:3,2
bmm f:1,2,3 f:1,3,2
addmm f:2,2 f:2,3 f:3,2
addbmm f:2,2 f:1,2,3 f:1,3,2
baddbmm f:1,2,2 f:1,2,3 f:1,3,2
matmul f:2,3 f:3,2
matmul f:2,2,3 f:3,2
mv f:2,3 f:3
dot f:3 f:3
linear f:2,3 f:4,3 f:4
linear f:2,3 f:4,3
einsum s:ij,jk->ik F:2,3;3,2
conv1d f:1,1,4 f:1,1,2
conv2d f:1,1,4,4 f:1,1,2,2 f:1
conv3d f:1,1,3,3,3 f:1,1,2,2,2
conv_tbc f:4,1,1 f:2,1,1 f:1 n:0
conv_transpose1d f:1,1,4 f:1,1,2
conv_transpose2d.input f:1,1,4,4 f:1,1,2,2
conv_transpose3d.input f:1,1,3,3,3 f:1,1,2,2,2
prelu f:2,3 f:1
scaled_dot_product_attention f:1,1,4,8 f:1,1,4,8 f:1,1,4,8
binary_cross_entropy f:3 f:3
binary_cross_entropy_with_logits f:3 f:3
mse_loss f:3 f:3
l1_loss f:3 f:3
smooth_l1_loss f:3 f:3
huber_loss f:3 f:3
kl_div f:3 f:3
nll_loss f:2,3 i:2
nll_loss2d f:1,2,3,3 i:1,3,3
cross_entropy_loss f:2,3 i:2
cross_entropy_loss f:2,3 f:2,3
poisson_nll_loss f:3 f:3 b:1 b:0 d:1e-8 n:1
soft_margin_loss f:3 f:3
hinge_embedding_loss f:3 f:3
margin_ranking_loss f:3 f:3 f:3
cosine_embedding_loss f:2,3 f:2,3 f:2
triplet_margin_loss f:2,3 f:2,3 f:2,3
multi_margin_loss f:2,3 i:2
multilabel_margin_loss f:2,3 i:2,3
prod f:3
trace f:2,2
cdist f:2,3 f:2,3
quantile f:3 f:2
nanquantile f:3 f:2
polar f:3 f:3
view_as_complex f:3,2
avg_pool3d f:1,2,2,2 l:2,2,2
max_pool3d f:1,2,2,2 l:2,2,2
adaptive_avg_pool3d f:1,2,2,2 l:1,1,1
reflection_pad1d f:1,4 l:1,1
reflection_pad2d f:1,4,4 l:1,1,1,1
replication_pad1d f:1,4 l:1,1
replication_pad2d f:1,4,4 l:1,1,1,1
grid_sampler f:1,1,2,2 f:1,2,2,2 n:0 n:0 b:0
stft f:8 n:4 none: none: none: b:0 none: b:1
fft_fft f:4
fft_ifft f:4
fft_rfft f:4
fft_fft2 f:4,4
cholesky e:3
cholesky_inverse e:3
inverse e:3
pinverse e:3
linalg_inv e:3
linalg_solve e:3 f:3
linalg_cholesky e:3
linalg_cholesky_ex e:3
linalg_qr e:3
linalg_svd e:3
linalg_svdvals e:3
linalg_eigh e:3
linalg_eigvals e:3
linalg_eigvalsh e:3
linalg_matrix_rank e:3 d:0.1
linalg_det e:3
fake_quantize_per_tensor_affine f:3 d:0.1 n:0 n:0 n:255
cat F:2,3;2,3
stack F:2,3;2,3
index_copy f:2,3 n:0 i:1 f:1,3
add.Tensor f:3 f:3
sub.Tensor f:3 f:3
mul.Tensor f:3 f:3
div.Tensor f:3 f:3
pow.Tensor_Scalar f:3 n:2
maximum f:3 f:3
where.self m:3 f:3 f:3
atan2 f:3 f:3
addcmul f:3 f:3 f:3
lerp.Scalar f:3 f:3 d:0.5
exp f:3
log f:3
sqrt f:3
sigmoid f:3
tanh f:3
erf f:3
relu f:3
gelu f:3
silu f:3
softplus f:3
clamp f:3 n:0 n:1
softmax.int f:2,3 n:-1
log_softmax.int f:2,3 n:-1
layer_norm f:2,3 l:3 f:3 f:3
group_norm f:1,2,3 n:1 f:2 f:2
batch_norm f:2,3 f:3 f:3 f:3 f:3 b:0 d:0.1 d:1e-5 b:0
dropout f:3 d:0.5 b:0
embedding f:4,3 i:2
bilinear f:2,3 f:2,3 f:4,3,3
sum f:3
mean f:3
cumsum f:3 n:0
logsumexp f:2,3 l:1
norm.Scalar f:3
linalg_vector_norm f:3
var f:3
argmax f:3
topk f:3 n:1
sort f:3
isnan f:3
avg_pool2d f:1,2,2 l:2,2
max_pool2d f:1,2,2 l:2,2
adaptive_avg_pool2d f:1,2,2 l:1,1
upsample_nearest2d f:1,1,2,2 l:4,4
pad f:2,3 l:1,1
cosine_similarity f:2,3 f:2,3
tensordot f:2,3 f:3,2 l:1 l:0
outer f:3 f:3
index_put f:3 I:1 f:1
scatter_add f:3 n:0 i:2 f:2
"""


class Arguments:
    """Makes the arguments of one op; the first floating tensor is of another dtype than the rest."""

    def __init__(self, first, others):
        self.dtypes = iter([first])
        self.others = others

    def dtype(self):
        return next(self.dtypes, self.others)

    def make(self, text):
        kind, value = text.split(":", 1)
        numbers = value.replace(";", ",").split(",")
        if kind in "fime":
            shape = [int(n) for n in numbers]
            if kind == "f":
                return torch.full(shape, 0.5).to(self.dtype())
            if kind == "e":
                return (2 * torch.eye(shape[0])).to(self.dtype())
            return torch.zeros(shape, dtype=torch.int64 if kind == "i" else torch.bool)
        if kind == "F":
            return [self.make("f:" + part) for part in value.split(";")]
        if kind == "I":
            return [self.make("i:" + part) for part in value.split(";")]
        if kind == "l":
            return [int(n) for n in numbers]
        return {"n": int, "d": float, "b": lambda v: v == "1", "s": str, "none": lambda _: None}[kind](value)


def output_dtype(op, texts, scope, first, others):
    name, _, overload = op.partition(".")
    arguments = Arguments(first, others)
    values = [arguments.make(text) for text in texts]
    try:
        with torch.autocast("cpu", dtype=scope):
            out = getattr(getattr(torch.ops.aten, name), overload or "default")(*values)
    except (RuntimeError, NotImplementedError):
        return "error"
    return NAMES[(out[0] if isinstance(out, (tuple, list)) else out).dtype]


def main():
    print(".".join(torch.__version__.split(".")[:2]))
    for line in OPS.split("\n"):
        if not line:
            continue
        op, *texts = line.split()
        for low in ("bf16", "f16"):
            for first, others in (("f32", "f32"), (low, low), ("f64", "f64"), ("f32", low), (low, "f32"), ("f64", low)):
                got = output_dtype(op, texts, DTYPES[low], DTYPES[first], DTYPES[others])
                print(op, *texts, low, first, others, got)


if __name__ == "__main__":
    main()
