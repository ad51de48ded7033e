"""Options of the commands that need no config file."""

import argparse
from typing import Any, NoReturn

from runtime.errors import EXIT_BAD_INPUT, UserError


class Parser(argparse.ArgumentParser):
    """Reports a mistake as every other command does."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of leaving the process."""
        raise UserError(f"{message}; see {self.prog} --help", status=EXIT_BAD_INPUT)


def add_option(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """Add an option that may also be written with hyphens."""
    names = dict.fromkeys((name, "--" + name.removeprefix("--").replace("_", "-")))
    parser.add_argument(*names, **settings)
