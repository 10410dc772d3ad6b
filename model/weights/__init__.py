"""Weights from elsewhere: where they are read from, and how they become those of our architectures."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message says which, why, and what would do."""
