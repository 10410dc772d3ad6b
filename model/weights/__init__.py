"""Published weights, read from their files and laid into our networks."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message says which, why, and what would do."""
