"""What CUDA refuses, what it waits for, and what its autocast computes in float32: rules of `fake_cuda`."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("cuda:0")
_Generator: Any = torch.Generator


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PRODUCTS = _names("""
    mm bmm addmm baddbmm addbmm mv addmv dot linear convolution convolution_backward scaled_dot_product_attention
    _native_multi_head_attention _transformer_encoder_layer_fwd
""")
"""Operations whose floating tensors must share a dtype, and that CUDA lacks for integers."""
NO_BYTES = _names("""
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa avg_pool2d
    _adaptive_avg_pool2d grid_sampler_2d reflection_pad2d replication_pad2d
""")
"""Operations that a CPU has for uint8, and CUDA has not."""
WAITING = _names("""
    _local_scalar_dense nonzero masked_select equal _unique _unique2 unique_dim unique_consecutive bincount histc
""")
"""Operations whose results the host needs to go on."""
ON_THE_HOST = _names("_pack_padded_sequence _pad_packed_sequence _pack_padded_sequence_backward lstm gru")
"""Operations that take lengths from the host."""
FLOAT32 = _names("""
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm
    native_layer_norm group_norm frobenius_norm nuclear_norm cosine_similarity poisson_nll_loss cosine_embedding_loss
    nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
    multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist
    pdist cdist renorm logsumexp upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm
""")
"""Operations that autocast computes in float32 on CUDA."""
LOW = torch.bfloat16, torch.float16


def check(name: str, tensors: Sequence[Tensor], mine: Sequence[Tensor]) -> None:
    """Refuse what CUDA refuses."""
    if not mine:
        return
    others = [one for one in tensors if not one.is_cuda and one.dim() > 0]
    if others and name not in ON_THE_HOST:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(in {name}: {[(str(one.device), one.dtype, tuple(one.shape)) for one in tensors]})"
        )
    dtypes = {one.dtype for one in tensors if one.dim() > 0}
    if name in PRODUCTS:
        if floats := {one for one in dtypes if one.is_floating_point}:
            if len(floats) > 1:
                raise RuntimeError(f"{name}: expected tensors to have the same dtype, but got: {floats}")
        elif dtypes:
            raise RuntimeError(f'"{name}_cuda" not implemented for {dtypes}')
    if name in NO_BYTES and torch.uint8 in dtypes:
        raise RuntimeError(f"\"{name}_out_frame\" not implemented for 'Byte'")


@contextmanager
def cudas_autocast() -> Iterator[None]:
    """The CPU's autocast with what CUDA's computes in float32."""
    library = Library("aten", "IMPL")
    beyond = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def kernel(function: Any) -> Callable[..., Any]:
        def wide(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(beyond):
                args, kwargs = tree_map_only(
                    Tensor,
                    lambda one: one.float() if one.is_cuda and one.dtype in LOW else one,
                    (args, kwargs),
                )
                return function(*args, **kwargs)

        return wide

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FLOAT32:
            packet = getattr(torch.ops.aten, name)
            for overload in packet.overloads():
                function = getattr(packet, overload)
                if "out" not in overload and "names" not in str(function._schema).lower():
                    library.impl(
                        function._schema.name.partition("::")[2] + ("" if overload == "default" else f".{overload}"),
                        kernel(function),
                        "AutocastCPU",
                    )
    try:
        yield
    finally:
        library._destroy()


class Generator(_Generator):
    """A generator that claims to be on the device, and draws what the CPU's draws."""

    def __new__(cls, device: Any = "cpu") -> Self:
        made = super().__new__(cls)
        made.claimed = torch.device(device)
        return made

    claimed: torch.device

    @property
    def device(self) -> torch.device:
        return self.claimed


class Waiter:
    """A stream or an event."""

    told: ClassVar[Callable[[str], None]] = staticmethod(lambda _why: None)
    """Counts that the host waits."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = DEVICE

    def synchronize(self) -> None:
        Waiter.told("synchronize")

    def query(self) -> bool:
        return False

    def is_capturing(self) -> bool:
        return False

    def elapsed_time(self, _other: object) -> float:
        return 1.0

    def record_event(self, event: "Waiter | None" = None) -> "Waiter":
        return event or Waiter()

    def record(self, _stream: object = None) -> None: ...
    def wait(self, _stream: object = None) -> None: ...
    def wait_event(self, _event: object) -> None: ...
    def wait_stream(self, _stream: object) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def check_generator(generator: Any, there: bool) -> None:
    if (generator.device.type == "cuda") != there:
        raise RuntimeError(
            f"Expected a '{'cuda' if there else 'cpu'}' device type for generator but found '{generator.device.type}'"
        )


def stream(on: Waiter | None) -> AbstractContextManager[Any]:
    return on or nullcontext()


def forget() -> None:
    """Let libraries that remember whether there is CUDA look again."""
    for name in ("transformers.utils.import_utils", "accelerate.utils.imports"):
        for function in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
            if callable(clear := getattr(function, "cache_clear", None)):
                clear()


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts; torch's own way through them costs more than the operations."""
    for one in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple | dict):
            yield from tensors_in(one)
