"""Writes data/exp_digits.txt: the first 256 binary digits of exp(-n / d), by mpmath.

    python exp_digits.py > data/exp_digits.txt

A line is: n and d, each as two 64-bit words with the high one first, and four 64-bit words of digits.
"""

import random

from mpmath import exp, floor, mp, mpf

mp.prec = 2000
WORD = 2**64


def words(number, count):
    return [number // WORD**i % WORD for i in reversed(range(count))]


def main():
    draw = random.Random(20260102)
    cases = [(0, 1), (1, 1), (1, 3), (2**81, 2**89), (7 * 2**100, 2**100 - 1), (1, 2**109)]
    cases += [(draw.getrandbits(draw.randint(1, 109)), draw.getrandbits(draw.randint(60, 109)) + 1)
              for _ in range(200)]
    for n, d in cases:
        if n > 200 * d:
            n %= 200 * d
        digits = int(floor(exp(-mpf(n) / d) * mpf(2)**256)) if n else 2**256 - 1
        print(*words(n, 2), *words(d, 2), *words(digits, 4))


if __name__ == "__main__":
    main()
