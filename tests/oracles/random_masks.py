"""Writes data/random_masks.txt: what random attention masks choose, written a second time from the papers:
Philox4x32-10 (Salmon et al. 2011), bounded numbers (Lemire 2019, algorithm 5), samples (Bentley and Floyd
1987).

    python random_masks.py > data/random_masks.txt

A line is: kind, seed, head, count, keep the diagonal, row; and what the row chooses among 0 to itself.
"""

TOP_K_STREAM = 0xFFFFFFFC
BLOCKS_STREAM = 0xFFFFFFFB
WORD = 0xFFFFFFFF


def philox(counter, key):
    counter, key = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b & WORD, a >> 32 ^ counter[3] ^ key[1], a & WORD]
        key = [key[0] + 0x9E3779B9 & WORD, key[1] + 0xBB67AE85 & WORD]
    return counter


def numbers(seed, head, row, stream):
    """64-bit numbers: two from each block, of which a row has 2^32."""
    block = row << 32
    while True:
        words = philox([block & WORD, block >> 32, head, stream], [seed & WORD, seed >> 32])
        yield words[0] | words[1] << 32
        yield words[2] | words[3] << 32
        block += 1


def below(bound, source):
    product = next(source) * bound
    while product % 2**64 < 2**64 % bound:
        product = next(source) * bound
    return product >> 64


def sample(n, count, source):
    chosen = set()
    for last in range(n - count, n):
        number = below(last + 1, source)
        chosen.add(last if number in chosen else number)
    return sorted(chosen)


def choice(row, count, keep, source):
    """Of 0 … row."""
    others = list(range(row if keep else row + 1))
    wanted = min(max(count - keep, 0), len(others))
    return [others[i] for i in sample(len(others), wanted, source)] + ([row] if keep else [])


def main():
    settings = [("keys", TOP_K_STREAM, 7, 0, 5, 1), ("keys", TOP_K_STREAM, 2**64 - 3, 11, 9, 0),
                ("blocks", BLOCKS_STREAM, 1, 3, 4, 1), ("blocks", BLOCKS_STREAM, 2**40 + 1, 0, 2, 0)]
    for kind, stream, seed, head, count, keep in settings:
        for row in range(24):
            keys = choice(row, count, keep, numbers(seed, head, row, stream))
            print(kind, seed, head, count, keep, row, *keys)


main()
