"""What goes wrong with directories."""


class CheckpointError(ValueError):
    """A directory or model that cannot be read or written as asked; one line says why."""
