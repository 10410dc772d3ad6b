"""Weights from elsewhere: where they are read from, and how they become those of our architectures."""


class WeightsError(Exception):
    """Weights that cannot be used; the message names the value and the cure."""
