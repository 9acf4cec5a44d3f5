"""Errors by whose they are: the user's, or the machine's; all others are those of one file, or of the code."""

import errno
import itertools
import re
from collections.abc import Callable
from typing import Any

AGAIN = "run the same command again"
"""End of what an error of a store or file system tells: nothing is lost."""
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
FURTHER = "\nerror: "
"""What stands between mistakes that are told at once."""
_PLACE = _MACHINE | {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EIO}
_DEVICE = re.compile(
    r"out of memory|can't allocate memory|NVIDIA driver|CUDA (driver|error|GPUs)|CUDA-capable|with CUDA enabled|"
    r"set CUDA device|current CUDA device|NVCUVID not loaded|\bcuda[A-Z]\w+ failed|"
    # CUresult: 1 and 801 say that this one film cannot be decoded on this GPU.
    r"Failed to create NVDEC decoder: (?!1\b|801\b)"
)
"""What torch and torchcodec say where it is the GPU, its driver or the memory that fails, not what they compute."""


class UserError(ValueError):
    """Settings, files or an environment that the user can mend; the message says what was found and what to do.

    A command that ends with it prints that message alone and exits with 2. Any other error is a fault: its traceback is
    printed and the command exits with 1.
    """


def check_all(*checks: Callable[[], Any]) -> list[Any]:
    """What checks return that do not depend on each other; raises one UserError with what all of them raise, each once.

    Its message is printed behind "error: ", and so each further problem has that before it, on a line of its own.
    """
    answers, problems = [], dict[str, None]()
    for check in checks:
        try:
            answers.append(check())
        except UserError as error:
            problems |= dict.fromkeys(str(error).split(FURTHER))
    if problems:
        raise UserError(FURTHER.join(problems))
    return answers


class BrokenRunError(RuntimeError):
    """What would fail for every file, as a library that is not there or a full disk: it ends the run, whichever file
    met it first, and costs none a row."""


def machine_fault(error: BaseException, writing: bool = False) -> str:
    """What an error says of this machine: a disk that is full or read-only, too many open files, a GPU that is not
    there or has no memory left; "" for another error.

    writing: it comes from writing into a folder of our own, where a missing folder or permission is the machine's, too.
    Errors of FFmpeg count by their number, those of torch and torchcodec by their text; so does what an error was
    raised from.
    """
    one: BaseException | None = error
    for _ in itertools.repeat(None, 16):
        if one is None:
            break
        if getattr(one, "errno", None) in (_PLACE if writing else _MACHINE):
            # That of a write below an output names its place.
            return (
                str(one)
                if AGAIN in str(one)
                else f"{one}; free some space, or set TMPDIR to a folder that can be written to"
            )
        if isinstance(one, (RuntimeError, AssertionError)) and _DEVICE.search(str(one)):
            said = str(one).partition("\n")[0]
            return f"{said}; check the GPU and its driver, or, where memory ran out, raise num_gpus or lower workers"
        one = one.__cause__ or one.__context__
    return ""
