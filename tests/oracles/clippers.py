"""Golden values of the adaptive clippers that tests/gradient/clip_adaptive_test.cpp replays.

    python clippers.py > data/clippers.txt        # needs numpy

AutoClip and ZClip: a scenario line, then one line per step with its norm and the largest norm it may
have ("inf": not clipped). AGC: a parameter, its gradient, the divisor and what must be left.
"""

import math
import random

import numpy


def series(kind, count):
    rng = random.Random(hash_of(kind))
    norms = []
    for i in range(count):
        norm = math.exp(rng.gauss(0.0, 0.3)) * (3.0 - 2.0 * i / count)
        if kind == "spikes" and i % 37 == 30:
            norm *= 10.0 ** rng.randint(1, 4)
        if kind == "broken" and i % 11 == 5:
            norm = rng.choice([math.nan, math.inf])
        if kind == "zeros" and i % 3 != 0:
            norm = 0.0
        if kind == "constant":
            norm = 1.5 if i != count - 5 else 40.0
        if kind == "shift" and i > count // 2:
            norm *= 4.0
        norms.append(norm)
    return norms


def hash_of(text):
    """Python's own hash differs from run to run."""
    return sum(ord(c) * 31**i for i, c in enumerate(text))


def autoclip(kind, percentile, history, count):
    print("autoclip", kind, percentile, history)
    seen = []
    for norm in series(kind, count):
        if math.isfinite(norm):
            seen.append(norm)
        recent = seen[-history:]
        limit = float(numpy.percentile(recent, percentile)) if recent else math.inf
        print(repr(norm), repr(limit))


def zclip(kind, alpha, threshold, warmup, count):
    """The paper's equations; in warm-up the norms are collected, nothing is limited."""
    print("zclip", kind, alpha, threshold, warmup)
    first = []
    mean = variance = None
    for norm in series(kind, count):
        limit = math.inf
        if math.isfinite(norm):
            if mean is None:
                first.append(norm)
                if len(first) == warmup:
                    mean = math.fsum(first) / warmup
                    variance = math.fsum((n - mean) ** 2 for n in first) / warmup
            else:
                sigma = math.sqrt(variance)
                if sigma > 0:
                    z = (norm - mean) / sigma
                    if z > threshold:
                        limit = mean + threshold / (z / threshold) * sigma
                kept = min(norm, limit)
                mean = alpha * mean + (1 - alpha) * kept
                variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
        print(repr(norm), repr(limit))


def l2(values):
    return math.sqrt(math.fsum(v * v for v in values))


def agc(name, shape, weight_size, gradient_size, clipping, eps, divisor):
    rng = random.Random(hash_of(name))
    count = math.prod(shape)
    units = shape[0] if len(shape) > 1 else 1
    w = [rng.gauss(0, 1) * weight_size for _ in range(count)]
    # Sizes of units' gradients spread over some powers of ten, so that a part of them is clipped.
    g = [rng.gauss(0, 1) * gradient_size * 10.0 ** (i * units // count % 4 - 2) for i in range(count)]
    left = []
    for u in range(units):
        part = slice(u * count // units, (u + 1) * count // units)
        true = [v / divisor for v in g[part]]
        limit = clipping * max(l2(w[part]), eps)
        factor = limit / l2(true) if l2(true) > limit else 1.0
        left += [v * factor for v in true]
    print("agc", name, clipping, eps, divisor, len(shape), *shape)
    for values in (w, g, left):
        print(*map(repr, values))


def main():
    for percentile in (0, 10, 33.3, 50, 97.5, 100):
        autoclip("spikes", percentile, 1000, 120)
    autoclip("spikes", 10, 16, 120)
    autoclip("broken", 25, 50, 120)
    autoclip("zeros", 10, 1000, 60)
    autoclip("zeros", 80, 7, 60)
    autoclip("constant", 10, 20, 60)
    for kind in ("spikes", "broken", "zeros", "constant", "shift"):
        zclip(kind, 0.97, 2.5, 25, 200)
    zclip("spikes", 0.5, 1.0, 2, 100)
    zclip("shift", 0.9, 3.0, 10, 200)
    agc("matrix", (6, 5), 1.0, 1.0, 0.01, 1e-3, 1.0)
    agc("small_weights", (4, 3), 1e-5, 1.0, 0.01, 1e-3, 1.0)
    agc("zero_weights", (4, 3), 0.0, 1.0, 0.02, 1e-2, 1.0)
    agc("filters", (8, 3, 2, 2), 0.3, 0.05, 0.1, 1e-3, 1.0)
    agc("bias", (7,), 0.5, 0.01, 0.01, 1e-3, 1.0)
    agc("scaled", (6, 5), 1.0, 4096.0, 0.05, 1e-3, 4096.0)


main()
