"""Writes data/fixed_size.txt and data/fixed_size_pld.txt: Gaussian noise on batches of fixed size, drawn
without replacement.

    python fixed_size.py > data/fixed_size.txt
    python fixed_size.py pld > data/fixed_size_pld.txt

A line is: batch / data set, noise multiplier, order; the divergence of the dominating pair by mpmath (the
integral of the difference of likelihoods over all orders of likelihoods, from the definition); theorem 9 of
Wang, Balle, Kasiviswanathan (2019) by mpmath, and dp-accounting's bound (both 0 where the order is not a
whole one); and a divergence that occurs: of data sets of zeros but for one example of norm 1/2 or -1/2.
"""

import math
import random
import sys

from dp_accounting.pld import pld_pmf
from dp_accounting.rdp import rdp_privacy_accountant as peer
from mpmath import binomial, erfc, exp, inf, log, mp, mpf, quad, sqrt, pi

mp.dps = 30


def above(x, sigma):
    return erfc(x / (sqrt(2) * sigma)) / 2


def difference(q, sigma, t):
    """E[(ratio - t)+]: of the mixture against the noise for t >= 1, the other way for t < 1."""
    def result(ratio):  # where mixture / noise has that value; -inf if it is always above
        return (log((ratio - 1 + q) / q) * sigma**2 + mpf(1) / 2) if ratio > 1 - q else -inf
    if t >= 1:
        x = result(t)
        return (1 - q) * above(x, sigma) + q * above(x - 1, sigma) - t * above(x, sigma)
    x = result(1 / t)
    below, below_with = above(-x, sigma), (1 - q) * above(-x, sigma) + q * above(1 - x, sigma)
    return below - t * below_with


def dominating(q, sigma, alpha):
    def high(s):  # t = e^s
        return alpha * (alpha - 1) * exp((alpha - 1) * s) * difference(q, sigma, exp(s))

    def low(s):
        t = exp(-s)
        return alpha * (alpha - 1) * t**(alpha - 1) * (difference(q, sigma, t) - (1 - t))
    scale = 1 / sigma
    edges = [mpf(0)] + [scale * mpf(2)**k for k in range(-6, 4)]
    peak = alpha / sigma**2 + log(q)
    edges += [e for e in (peak + k * scale for k in (-8, -4, -2, 0, 2, 4, 8, 12)) if e > 0]
    end = max(edges)
    excess = quad(high, sorted(set(edges))) + quad(high, [end, 2 * end, 4 * end])
    excess += quad(low, sorted(set(edges)) + [2 * end])
    return log(1 + excess) / (alpha - 1)


def wang(q, sigma, alpha):
    def gaussian(order):
        return mpf(order) / (2 * sigma**2)
    total = 1 + q**2 * binomial(alpha, 2) * min(4 * (exp(gaussian(2)) - 1), 2 * exp(gaussian(2)))
    for j in range(3, int(alpha) + 1):
        total += 2 * q**j * binomial(alpha, j) * exp((j - 1) * gaussian(j))
    return log(total) / (alpha - 1)


def occurring(q, sigma, alpha):
    def density(x, mean):
        return exp(-(x - mean)**2 / (2 * sigma**2))

    def integrand(x):
        p = (1 - q) * density(x, 0) + q * density(x, mpf(1) / 2)
        r = (1 - q) * density(x, 0) + q * density(x, -mpf(1) / 2)
        return p**alpha * r**(1 - alpha)
    edges = sorted([-8 * sigma, 0, mpf(1) / 2, alpha / 2, alpha, alpha / 2 + 4 * sigma, alpha + 8 * sigma])
    return log(quad(integrand, edges) / (sigma * sqrt(2 * pi))) / (alpha - 1)


def composed(q, sigma, steps, delta):
    interval = 1e-3
    first, last = -int(12 / sigma / interval), int(14 / sigma / interval)

    def cdf(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    def at(epsilon):
        t = math.exp(epsilon)
        if epsilon >= 0:
            x = math.log((t - 1 + q) / q) * sigma**2 + 0.5
            return (1 - q) * cdf(-x / sigma) + q * cdf((1 - x) / sigma) - t * cdf(-x / sigma)
        x = math.log((1 / t - 1 + q) / q) * sigma**2 + 0.5
        return cdf(x / sigma) - t * ((1 - q) * cdf(x / sigma) + q * cdf((x - 1) / sigma))
    points = [i for i in range(first, last)]
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots(
        interval, points, [min(1.0, max(0.0, at(i * interval))) for i in points])
    return pmf.self_compose(steps).get_epsilon_for_delta(delta)


def runs():
    draw = random.Random(20260104)
    written = 0
    while written < 20:
        q = round(10**draw.uniform(-3, -0.3), 5)
        sigma = round(10**draw.uniform(-0.1, 0.7), 4)
        steps = int(10**draw.uniform(0, 3))
        delta = 10.0**-draw.randint(4, 7)
        epsilon = composed(q, sigma, steps, delta)
        if 0.05 < epsilon < 15:
            print(q, sigma, steps, delta, f"{epsilon:.12g}", flush=True)
            written += 1


def main():
    if sys.argv[1:] == ["pld"]:
        return runs()
    draw = random.Random(20260103)
    for i in range(60):
        q = mpf(repr(10**draw.uniform(-4, -0.1)))
        sigma = mpf(repr(10**draw.uniform(-0.4, 1)))
        whole = i % 2 == 0
        alpha = mpf(draw.randint(2, 60)) if whole else mpf(repr(1 + 10**draw.uniform(-1, 1.2)))
        exact = dominating(q, sigma, alpha)
        other = [0, 0]
        if whole:
            theirs = peer._compute_rdp_sample_wor_gaussian_scalar(float(q), float(sigma), int(alpha))
            other = [wang(q, sigma, alpha), mpf(theirs)]
        print(*(mp.nstr(mpf(x), 17) for x in (q, sigma, alpha, exact, *other, occurring(q, sigma, alpha))),
              flush=True)


if __name__ == "__main__":
    main()
