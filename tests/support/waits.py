"""What a CPU would wait for on a GPU, found without one."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"_local_scalar_dense", "_unique2", "equal", "is_nonzero", "masked_select", "nonzero"}
"""Operations whose answer decides what Python does next; copies of whole tensors are not among them."""


class Waits(TorchDispatchMode):
    """Note the operations that make a CPU wait for what a GPU has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        name = operation.__name__.partition(".")[0]
        if name in WAITING:
            self.found.append(name)
        return operation(*arguments, **(options or {}))
