"""The one error that is the user's to mend: it is printed as a single line, without a traceback."""


class UsageError(Exception):
    """Bad input; the message says what was expected, what was found and the way out. Exit status 2."""
