"""The other side of bench/claims/harness/peer.hpp: one timing after another, when asked.

A script of this folder prepares its work and calls `serve`. On standard input "run N" asks for
N runs; the answer is the seconds of one, on a line of its own.
"""

import argparse
import sys
import time


def arguments(**names):
    """Reads --threads and further whole numbers, e.g. arguments(tensors=100); the values are defaults."""
    parser = argparse.ArgumentParser()
    for name, default in {"threads": 1, **names}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def start(threads):
    """Imports torch with as many threads, or says that it is missing and ends."""
    try:
        import torch
    except ImportError:
        print("missing", flush=True)
        sys.exit(0)
    torch.set_num_threads(threads)
    return torch


def serve(version, work, prepare=lambda: None):
    """Answers until the input ends; `prepare` runs before each run and is not timed."""
    print("ready", version, flush=True)
    for line in sys.stdin:
        repeats = int(line.removeprefix("run "))
        seconds = 0.0
        for _ in range(repeats):
            prepare()
            begin = time.perf_counter()
            work()
            seconds += time.perf_counter() - begin
        print(seconds / repeats, flush=True)
