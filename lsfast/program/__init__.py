"""Beneath the objective: how a model's loss is differentiated and evaluated for many vectors or points at once."""
