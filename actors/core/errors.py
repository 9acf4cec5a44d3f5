"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Settings, files or an environment that the user can mend; the message says what was found and what to do.

    A command that ends with it prints that message alone and exits with 2. Any other error is a fault: its traceback is
    printed and the command exits with 1.
    """
