"""What a user reads when weights cannot be used."""


class CheckpointError(ValueError):
    """Weights that cannot be used. The message says which file, what is wrong with it, and what to do."""
