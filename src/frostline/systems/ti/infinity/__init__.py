"""Infinity, the bitwise autoregressive image model, with the published checkpoints' names (Han et al., 2024).

Modules are imported one by one: schedules and sizes do not need torch.
"""
