"""The package's exception for bad input."""


class MicroCinemaError(ValueError):
    """Bad input. The message is one sentence for the user: what is wrong, and what to do about it."""
