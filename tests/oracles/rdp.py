"""Writes data/rdp.txt: Renyi divergences of the sampled Gaussian mechanism, by mpmath to 30 digits.

    python rdp.py > data/rdp.txt

A line is: sample rate, noise multiplier, order, divergence. Whole orders come from the binomial sum,
the others from the integral.
"""

import random

from mpmath import binomial, exp, inf, log, mp, mpf, pi, quad, sqrt

mp.dps = 60


def whole(q, sigma, alpha):
    return sum(binomial(alpha, k) * (1 - q)**(alpha - k) * q**k * exp((k * k - k) / (2 * sigma**2))
               for k in range(int(alpha) + 1))


def any_order(q, sigma, alpha):
    def integrand(z):
        ratio = 1 - q + q * exp((2 * z - 1) / (2 * sigma**2))
        return exp(-z * z / (2 * sigma**2)) * ratio**alpha
    edges = [-inf, -5 * sigma, 0, mpf(1) / 2, alpha / 2, alpha, alpha + 5 * sigma, inf]
    return quad(integrand, sorted(edges)) / (sigma * sqrt(2 * pi))


def main():
    draw = random.Random(20260101)
    for i in range(400):
        q = mpf(repr(10**draw.uniform(-5, -0.01)))
        sigma = mpf(repr(10**draw.uniform(-0.5, 1)))
        alpha = mpf(draw.randint(2, 200)) if i % 2 else mpf(repr(1 + 10**draw.uniform(-1.5, 1.5)))
        a = (whole if i % 2 else any_order)(q, sigma, alpha)
        print(*(mp.nstr(x, 20) for x in (q, sigma, alpha, log(a) / (alpha - 1))))


if __name__ == "__main__":
    main()
