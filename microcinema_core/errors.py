"""The one exception a user is meant to read."""


class MicroCinemaError(ValueError):
    """Bad input: the message is one sentence that names cause and cure."""
