"""Writes data/discrete_noise.txt: probabilities of discrete Gaussian and Laplace noise, by mpmath to 30 digits.

    python discrete_noise.py > data/discrete_noise.txt

A line is: 0 (Gaussian) or 1 (Laplace), scale, y, probability of y (equal to that of -y). Each list ends with
the probability of all |y| that are larger, in a line with y = -1.
"""

from mpmath import exp, mp, mpf, nsum, inf, nstr

mp.dps = 40


def weight(kind, scale, y):
    return exp(-mpf(y) / scale) if kind else exp(-mpf(y)**2 / (2 * scale**2))


def main():
    for kind in (0, 1):
        for scale in (mpf(1) / 4, mpf(1) / 2, mpf(1), mpf("3.5"), mpf(4), mpf("5.3125"), mpf(12), mpf("20.75")):
            last = int(scale * (8 if kind else 4)) + 1
            above = nsum(lambda y: weight(kind, scale, y), [last + 1, inf])
            inside = [weight(kind, scale, y) for y in range(last + 1)]
            total = inside[0] + 2 * (sum(inside[1:]) + above)
            for y, w in enumerate(inside):
                print(kind, nstr(scale, 6), y, nstr(w / total, 20))
            print(kind, nstr(scale, 6), -1, nstr(2 * above / total, 20))


if __name__ == "__main__":
    main()
