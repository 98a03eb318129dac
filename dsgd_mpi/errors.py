"""The one error that is the user's to mend: it is printed as a single line, without a traceback."""

import click


class UsageError(click.ClickException):
    """Bad input; the message says what was expected, what was found and the way out. Exit status 2.

    Every click command prints it as `Error: message` to stderr and leaves with that status, with no help from us.
    """

    exit_code = 2
