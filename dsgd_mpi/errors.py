"""The one error that is the user's to fix: it is printed as a single line, without a traceback."""

import click


class UsageError(click.ClickException):
    """Bad input; the message says what was expected, what was found and the way out. Exit status 2.

    Every click command prints it as `Error: message` to stderr and exits with that status by itself.
    """

    exit_code = 2
