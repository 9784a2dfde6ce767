"""Writes data/zcdp.txt: what rho proves, by mpmath to 40 digits.

    python zcdp.py > data/zcdp.txt

A line is: rho, delta, epsilon: the smallest epsilon over all orders for that delta.
"""

import random

from mpmath import log, mp, mpf, nstr

mp.dps = 40


def log_delta(rho, epsilon, order):
    return ((order - 1) * (order * rho - epsilon) - log(order - 1) + order * log(1 - 1 / order))


def best_log_delta(rho, epsilon):
    low, high = mpf(-40), mpf(40)  # of log(order - 1), by ternary search
    for _ in range(400):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if log_delta(rho, epsilon, 1 + mp.exp(a)) < log_delta(rho, epsilon, 1 + mp.exp(b)):
            high = b
        else:
            low = a
    return log_delta(rho, epsilon, 1 + mp.exp(low))


def main():
    draw = random.Random(20260105)
    for _ in range(40):
        rho = mpf(repr(10**draw.uniform(-5, 1.5)))
        delta = mpf(repr(10.0**-draw.randint(3, 12)))
        low, high = mpf(0), rho + 2 * mp.sqrt(-rho * log(delta))
        for _ in range(80):
            middle = (low + high) / 2
            if best_log_delta(rho, middle) <= log(delta):
                high = middle
            else:
                low = middle
        print(nstr(rho, 17), nstr(delta, 17), nstr(high, 17), flush=True)


if __name__ == "__main__":
    main()
