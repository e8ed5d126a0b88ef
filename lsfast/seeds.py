"""Generators of random numbers that depend on a seed and a few counters alone, never on the global state."""

from __future__ import annotations

import torch

_MASK = 2**64 - 1


def generator(seed: int, *words: int) -> torch.Generator:
    """Return a CPU generator of its own for each (seed, words), by SplitMix64 (Steele, Lea & Flood, 2014)."""
    state = seed
    for word in words:
        state = (state + 0x9E3779B97F4A7C15 * (word + 1)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return torch.Generator().manual_seed(state)
