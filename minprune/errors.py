"""The one exception that a user's own mistake raises."""


class PruneError(ValueError):
    """A mistake of the caller: one sentence with the offending value and the remedy.

    The command line prints the sentence and exits with code 2; in Python it is a `ValueError`.
    """
