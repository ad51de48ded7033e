"""What goes wrong with directories."""

_LONGEST = 1000  # characters; a file may hold anything, and some of it is quoted


class CheckpointError(ValueError):
    """A directory or model that cannot be read or written as asked; one line says why."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …")
