"""Train the small part of a big model, in the memory you have, with the same gradients."""

__version__ = "0.1.0.dev0"
