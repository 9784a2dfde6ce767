"""Writes data/audit.txt: intervals and p-values of audits, by scipy.

    python audit.py > data/audit.txt

Lines of 4 numbers: successes, trials, and the bounds of Clopper and Pearson at 95 %. Lines of 6: canaries,
guesses, right guesses, epsilon, delta, and theorem 5.2 of Steinke, Nasr, Jagielski (2023).
"""

import math
import random

from scipy.stats import beta, binom


def interval(k, n):
    low = beta.ppf(0.025, k, n - k + 1) if k > 0 else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return low, high


def p_value(m, r, v, epsilon, delta):
    q = 1 / (1 + math.exp(-epsilon))

    def tail(k):
        return binom.sf(k - 1, r, q)
    most = max((tail(v - i) - tail(v)) / i for i in range(1, m + 1))
    return min(1.0, tail(v) + 2 * m * delta * most)


def main():
    draw = random.Random(20260106)
    for _ in range(60):
        n = int(10**draw.uniform(0, 5))
        k = draw.choice([0, n, draw.randint(0, n), min(n, draw.randint(0, 20))])
        print(k, n, *(f"{x:.15g}" for x in interval(k, n)))
    for _ in range(60):
        m = int(10**draw.uniform(1, 3.5))
        r = 2 * draw.randint(1, m // 2)
        v = draw.randint(r // 2, r)
        epsilon = draw.uniform(0, 4)
        delta = draw.choice([0, 1e-6, 1e-5, 1e-4])
        print(m, r, v, epsilon, delta, f"{p_value(m, r, v, epsilon, delta):.15g}")


if __name__ == "__main__":
    main()
