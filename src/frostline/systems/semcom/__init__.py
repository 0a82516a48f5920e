"""Semantic communication: a trained codec and a channel in the middle of a frozen Florence-2."""
