"""Random seeds that depend on what is drawn, never on when, where or in which order it is drawn."""

import hashlib


def instance_seed(run_seed: int, round_: int, category_id: int, instance: int) -> int:
    """A seed in [0, 2**63) for one generated instance: a hash of run seed, round, category and number."""
    key = f"{run_seed}/{round_}/{category_id}/{instance}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
