"""The errors that are one line for the user: printed without a traceback, each with an exit status of its own."""

import click


class RunError(click.ClickException):
    """A run that ends with one line for the user and a status of its own, which is given to it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code          # type: ignore[misc]  # click has one for each class


class UsageError(click.ClickException):
    """Bad input; the message says what was expected, what was found and the way out. Exit status 2.

    Every click command prints it as `Error: message` to stderr and exits with that status by itself.
    """

    exit_code = 2
