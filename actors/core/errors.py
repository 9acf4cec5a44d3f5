"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Settings, files or an environment that the user can mend; the message says what was found and what to do.

    A command that ends with it prints that message alone and exits with 2. Any other error is a fault: its traceback is
    printed and the command exits with 1.
    """


def not_downloaded(setting: str, model: str, problem: object, folder: str) -> UserError:
    """The error of a model that the Hugging Face Hub does not give.

    problem: what its library says, of which the first line is kept; folder: what to pass instead, in words.
    """
    first = str(problem).partition("\n")[0]
    return UserError(
        f"{setting}={model} cannot be downloaded from the Hugging Face Hub ({first}). Pass {folder}, or set HF_TOKEN."
    )
