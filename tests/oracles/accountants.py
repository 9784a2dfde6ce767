"""Writes data/accountants.txt: what dp-accounting and prv-accountant say of 500 random private runs.

    python accountants.py > data/accountants.txt

A line is: noise multiplier, sample rate, steps, delta; epsilon by RDP over the orders 2 to 64
(dp-accounting); optimistic and pessimistic epsilon by PLD with an interval of 1e-3 (dp-accounting);
lower bound, estimate and upper bound by PRV with an error of 0.1 (prv-accountant).
"""

import math
import random

from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import rdp_privacy_accountant
from prv_accountant import Accountant


def rdp(sigma, q, steps, delta):
    accountant = rdp_privacy_accountant.RdpAccountant(orders=list(range(2, 65)))
    accountant.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma)), steps)
    return accountant.get_epsilon(delta)


def by_pld(sigma, q, steps, delta, pessimistic):
    one = pld.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=1e-3,
        pessimistic_estimate=pessimistic, use_connect_dots=pessimistic)
    return one.self_compose(steps).get_epsilon_for_delta(delta)


def main():
    draw = random.Random(20260102)
    written = 0
    while written < 500:
        sigma = round(10**draw.uniform(-0.2, 0.7), 4)
        q = round(10**draw.uniform(-3.5, -0.5), 6)
        steps = int(10**draw.uniform(0, 3.5))
        delta = 10.0**-draw.randint(4, 7)
        by_rdp = rdp(sigma, q, steps, delta)
        if not math.isfinite(by_rdp) or by_rdp > 15 or by_rdp < 0.05:
            continue
        prv = Accountant(noise_multiplier=sigma, sampling_probability=q, delta=delta,
                         max_compositions=steps, eps_error=0.1).compute_epsilon(steps)
        low, high = (by_pld(sigma, q, steps, delta, p) for p in (False, True))
        print(sigma, q, steps, delta, *(f"{x:.12g}" for x in (by_rdp, low, high, *prv)), flush=True)
        written += 1


if __name__ == "__main__":
    main()
