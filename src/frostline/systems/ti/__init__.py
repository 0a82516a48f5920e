"""Textual inversion: new words for the frozen bitwise autoregressive image model Infinity."""
