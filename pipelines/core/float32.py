"""Losses, similarities and metrics in float32, also where a model's own products are in bfloat16."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def in_float32(function: F) -> F:
    """A function of tensors that computes in float32 wherever it is called.

    Under autocast `.float()` is not enough: a product casts its inputs again, and cosines that differ by less than
    0.4 % become equal.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        import torch

        device = next(one.device.type for one in args if isinstance(one, torch.Tensor))
        with torch.autocast(device, enabled=False):
            return function(*(_wide(one) for one in args), **kwargs)

    return cast(F, wrapped)


def _wide(value: Any) -> Any:
    import torch

    narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value
