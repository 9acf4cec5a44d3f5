"""Every training of the project, on Ray Train: seeded, in the store, and continued by the same call after a kill.

`fit` trains by epochs on Ray datasets. It stands on `train`, `report` and `restore`, which serve loops of other kinds.
"""

import csv
import hashlib
import io
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import ray
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from ray import train as ray_train
from ray.data import DataIterator, Dataset, ExecutionOptions
from ray.data.dataset import MaterializedDataset
from ray.train.torch import TorchTrainer, get_device, prepare_model
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from actors.core import storage
from actors.core.store import Store

_EVENTS: Any = event_pb2
"""Generated code without types."""

STATE = "state.safetensors"
"""The one file of a checkpoint: `model.*`, `optimizer.<parameter>.<moment>`, `best.*`, and the metrics as metadata."""
OWN_VALUES = ("epoch", "train_loss", "learning_rate", "seconds")
"""What every row of a history holds beside the values of `evaluate`: number from 1, mean loss, rate, its duration."""

Tensors = dict[str, Tensor]
"""A batch: columns by name, each (N, ...)."""
Row = dict[str, float]
"""One epoch of a history."""


@dataclass(frozen=True)
class TrainingConfig:
    """How `fit` trains."""

    epochs: int = 100
    """Passes over the training rows at most."""
    batch_size: int = 32
    """Rows of one optimizer step, over all workers together."""
    learning_rate: float = 1e-3
    """Of AdamW, at the start."""
    weight_decay: float = 0.0
    """Of AdamW; with 0 it is Adam."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """How the learning rate goes on: as it is, down to 0 along a cosine, or times `decay_ratio` at every step."""
    decay_epochs: int = 150
    """Epochs of one step."""
    decay_ratio: float = 0.6
    """What a step multiplies the learning rate by."""
    clip: float | None = None
    """Longest gradient that a step follows as it is; a longer one is shortened to this."""
    drop_last: bool = False
    """Leave out the last rows of an epoch where they fill no batch, for losses that depend on how many rows it has."""
    accumulate: int = 1
    """Pieces in which a worker computes its part of a batch: as many times less memory, the same gradient."""
    bf16: bool = True
    """On a GPU, compute in bfloat16 where PyTorch's autocast deems it safe."""
    monitor: str = "valid_loss"
    """The value that says which epoch is best: one that `evaluate` returns, or train_loss."""
    mode: Literal["min", "max"] = "min"
    """Which value of `monitor` is best."""
    patience: int | None = None
    """Epochs without a better value after which training ends; none: it never ends early."""
    seed: int = 0
    """Of the first weights, the order of rows and what layers draw."""
    keep_mb: int = 1024
    """A data set up to this size is read once and kept on the device of every worker; a larger one is streamed in every
    epoch, and shuffled within a window of this size."""
    checkpoint_s: float = 30.0
    """Seconds between two checkpoints; the last epoch always makes one, and 0 means every epoch."""
    workers: int = 1
    """Processes that train side by side, each on its part of every batch."""
    num_cpus: float = 1.0
    """CPUs that one worker holds."""
    use_gpu: bool = False
    """A GPU for each worker."""

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "decay_epochs", "accumulate", "keep_mb", "workers")
        for name in counts if self.patience is None else (*counts, "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} starts at 1, not {getattr(self, name)}")
        for name in ("learning_rate", "decay_ratio", "num_cpus", *(("clip",) if self.clip is not None else ())):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is above 0, not {getattr(self, name)}")
        if min(self.seed, self.checkpoint_s, self.weight_decay) < 0:
            raise ValueError(f"seed, checkpoint_s and weight_decay start at 0: {self}")


ELSEWHERE = ("checkpoint_s", "workers", "num_cpus", "use_gpu")
"""Settings that may change while a training is continued: they say where and how safely it runs, not what it learns."""


@dataclass(frozen=True)
class Trained:
    """The outcome of `fit`."""

    model: nn.Module
    """With the weights of the best epoch, in evaluation mode on the CPU."""
    history: list[Row]
    """One row an epoch: OWN_VALUES and what `evaluate` returned."""
    best_epoch: int
    """Number of the best epoch, from 1."""
    resumed_from: int
    """Epochs that were there when the workers (last) began: 0 for a training that ran through."""


def fit(
    make_model: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensors], Tensor],
    evaluate: Callable[[nn.Module, Iterable[Tensors]], dict[str, float]],
    datasets: dict[str, Dataset],
    config: TrainingConfig,
    *,
    output: str,
    settings: dict[str, Any],
) -> Trained:
    """Train by epochs; the same call after a kill goes on from the last checkpoint and ends as if nothing had happened.

    One worker or several see the same batches and make the same steps, up to rounding: of every batch each takes its
    part, and gradients are weighted by rows. To that end each worker reads all rows; where reading is dear
    (pictures to decode), give `materialize()`d datasets. Layers that draw (dropout) or look across
    rows (batch norm) do so per worker.

    Args:
        make_model: builds the model with its first weights; parameters without `requires_grad` are not trained.
        loss: the mean loss over the rows of a batch, a scalar. It calls `model(...)` itself, not its methods or parts,
            so that the workers' gradients are averaged. It may look at the rows of all workers (pipelines/gathering.py)
            and still tells the mean over its own; then accumulate is 1, and drop_last keeps all workers at it.
        evaluate: values by name from all batches of the validation rows, in their order, with the model in evaluation
            mode and without gradients; the first worker calls it after every epoch.
        datasets: `train` and `valid`, of numeric columns with one shape in all rows.
        output: a path or s3://bucket/prefix that every worker can write to. Below it come model.safetensors (best
            epoch), last.safetensors, settings.json, curves.csv, curves.png, tensorboard/ and checkpoints/.
        settings: JSON values of all else that the result depends on: the model, the loss, which data. With other
            settings, or another `config` but for ELSEWHERE, it is another training that starts at zero.

    Raises:
        ValueError: no such monitored value or none that is a number, no rows, a loss that is not finite, or a cluster
            that is too small.
        ray.train.TrainingFailedError: the functions raised, or workers died three times.
    """
    if set(datasets) != {"train", "valid"}:
        raise ValueError(f"datasets are train and valid, not {', '.join(datasets) or 'none'}")
    store = Store(storage.absolute(output))
    described = {"training": asdict(config), **settings}
    store.write_json(described, "settings.json")
    result = train(
        partial(_epochs, make_model, loss, evaluate, config, store.root),
        {**described, "training": {k: v for k, v in asdict(config).items() if k not in ELSEWHERE}},
        seed=config.seed,
        output=store.root,
        workers=config.workers,
        num_cpus=config.num_cpus,
        use_gpu=config.use_gpu,
        datasets=datasets,
    )
    assert result.return_value is not None
    resumed_from, problem = result.return_value
    if problem:
        raise ValueError(problem)
    assert result.checkpoint is not None
    tensors, metrics = _read(result.checkpoint)
    history: list[Row] = metrics["history"]
    best_number = best_epoch(history, config)
    if not best_number:
        raise ValueError(f"{config.monitor} was not a number in any epoch: monitor another value")
    best = _below("best", tensors)
    for name, weights in (("model", best), ("last", _below("model", tensors))):
        storage.write_bytes(store.uri(f"{name}.safetensors"), save(weights))
    storage.write_bytes(store.uri("curves.csv"), _csv(history))
    storage.write_bytes(store.uri("curves.png"), draw_curves(history, best_number))
    model = make_model()
    model.load_state_dict(best)
    return Trained(model.eval(), history, best_number, resumed_from)


def _epochs(
    make_model: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensors], Tensor],
    evaluate: Callable[[nn.Module, Iterable[Tensors]], dict[str, float]],
    config: TrainingConfig,
    output: str,
) -> tuple[int, str]:
    """What every worker does; returns the epochs that were there before, and what is wrong if it cannot go on."""
    context = ray_train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = get_device()
    bare = make_model().to(device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in bare.parameters() if parameter.requires_grad],
        config.learning_rate,
        weight_decay=config.weight_decay,
    )
    best: Tensors = {}
    metrics = restore(ray_train.get_checkpoint(), bare, optimizer, best)
    history: list[Row] = metrics.get("history", [])
    begin = len(history)
    if finished(history, config):
        return begin, ""
    model = prepare_model(bare)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, config.bf16 and device.type == "cuda")
    rows = {}
    for name in ("train", "valid") if rank == 0 else ("train",):
        stream = ray_train.get_dataset_shard(name)
        assert stream is not None
        rows[name] = Rows(stream, device, config.keep_mb << 20)
    if empty := _agreed([name for name in rows if rows[name].empty], device):
        return begin, f"there are no rows in {' and '.join(empty)}"
    scalars = _Scalars(output, begin) if rank == 0 else None
    saved = time.monotonic()
    while not finished(history, config):
        start, epoch = time.perf_counter(), len(history)
        rate = learning_rate(config, epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Seeded anew, so that layers draw the same after a kill.
        _seed(config.seed, epoch, rank)
        model.train()
        shares = rows["train"].shares(config.batch_size, (config.seed, epoch), rank, workers)
        if config.drop_last:
            shares = (share for share in shares if share.rows == config.batch_size)
        total, count = train_epoch(model, optimizer, shares, loss, config.accumulate, workers, autocast, config.clip)
        if not count:
            return begin, f"there are fewer rows in train than batch_size={config.batch_size}: lower it"
        if workers > 1:
            distributed.all_reduce(total)
        row: Row = {"epoch": epoch + 1, "train_loss": total.item() / count, "learning_rate": rate}
        problem, due = "", False
        if rank == 0:
            bare.eval()
            with torch.inference_mode(), autocast():
                values = evaluate(bare, rows["valid"].batches(config.batch_size))
            row |= {name: float(value) for name, value in values.items()}
            row["seconds"] = time.perf_counter() - start
            problem = _problem(row, values, config)
            due = time.monotonic() - saved >= config.checkpoint_s
        row, problem, due = _agreed((row, problem, due), device)
        if problem:
            return begin, problem
        history.append(row)
        if scalars is not None:
            scalars.add(row)
            if best_epoch(history, config) == len(history):
                best = {name: tensor.detach().cpu().clone() for name, tensor in bare.state_dict().items()}
        if due or finished(history, config):
            if scalars is not None:
                scalars.publish()
            report({"epoch": len(history), "history": history}, bare, optimizer, best)
            saved = time.monotonic()
    return begin, ""


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shares: Iterable["Share"],
    loss: Callable[[nn.Module, Tensors], Tensor],
    accumulate: int = 1,
    workers: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    clip: float | None = None,
) -> tuple[Tensor, int]:
    """Make one optimizer step for every batch; returns the sum of this worker's losses, and how many rows all had.

    The gradient of a step is that of the mean loss over all rows of the batch, however they are split.
    """
    total, count = torch.zeros(()), 0
    for share in shares:
        optimizer.zero_grad()
        pieces = list(_pieces(share.batch, accumulate))
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            # Gradients travel once a step.
            alone = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
            with alone:
                with autocast():
                    value = loss(model, piece).float() * (_length(piece) if share.counts else 0)
                # The workers' gradients are averaged, which divides by their number.
                (value * workers / share.rows).backward()
            total = total.to(value.device) + value.detach()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        count += share.rows
    return total, count


class Share(NamedTuple):
    """A worker's part of one batch."""

    batch: Tensors
    """Its rows; at least one."""
    rows: int
    """Rows of the batch over all workers."""
    counts: bool
    """False where the batch has fewer rows than there are workers, and this one borrows a row to keep step."""


class Rows:
    """A dataset as batches on a device: kept there if it fits, else streamed in every pass."""

    def __init__(self, stream: DataIterator, device: torch.device, keep_bytes: int) -> None:
        self._stream = stream
        self._device = device
        self._kept: Tensors | None = None
        blocks: list[Tensors] = []
        size = rows = 0
        for block in stream.iter_torch_batches(batch_size=None, device="cpu"):
            blocks.append(block)
            size += sum(column.nbytes for column in block.values())
            rows += _length(block)
            if size > keep_bytes:
                break
        else:
            names = blocks[0] if blocks else ()
            self._kept = {name: torch.cat([block[name] for block in blocks]).to(device) for name in names}
        self.empty = not rows
        self._window = max(1, rows * keep_bytes // max(size, 1))

    def shares(self, batch_size: int, seed: Sequence[int], worker: int = 0, workers: int = 1) -> Iterator[Share]:
        """One pass in an order that depends on the seed alone, as this worker's part of every batch."""
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        if self._kept is None:
            # With less than two batches in its window, Ray gives some batches fewer rows than asked for.
            window = max(self._window, 2 * batch_size)
            for batch in self._batches(batch_size, local_shuffle_buffer_size=window, local_shuffle_seed=state):
                yield _share(torch.arange(_length(batch), device=self._device), batch, worker, workers)
            return
        order = torch.randperm(_length(self._kept), generator=torch.Generator().manual_seed(state))
        for part in order.to(self._device).split(batch_size):
            yield _share(part, self._kept, worker, workers)

    def batches(self, batch_size: int) -> Iterator[Tensors]:
        """One pass in the order of the dataset."""
        if self._kept is None:
            yield from self._batches(batch_size)
            return
        for first in range(0, _length(self._kept), batch_size):
            yield {name: column[first : first + batch_size] for name, column in self._kept.items()}

    def _batches(self, batch_size: int, **shuffle: Any) -> Iterator[Tensors]:
        yield from self._stream.iter_torch_batches(batch_size=batch_size, device=str(self._device), **shuffle)


def _share(indices: Tensor, columns: Tensors, worker: int, workers: int) -> Share:
    rows = len(indices)
    first, end = (rows * part // workers for part in (worker, worker + 1))
    mine = indices[first:end] if end > first else indices[:1]
    return Share({name: column[mine] for name, column in columns.items()}, rows, end > first)


def _pieces(batch: Tensors, count: int) -> Iterator[Tensors]:
    size = math.ceil(_length(batch) / count)
    for first in range(0, _length(batch), size):
        yield {name: column[first : first + size] for name, column in batch.items()}


def _length(batch: Tensors) -> int:
    return len(next(iter(batch.values())))


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """The learning rate in an epoch, counted from 0."""
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
        case "step":
            return config.learning_rate * config.decay_ratio ** (epoch // config.decay_epochs)


def best_epoch(history: list[Row], config: TrainingConfig) -> int:
    """Number of the first epoch with the best monitored value; 0 where none is a number."""
    numbers = [(row[config.monitor], int(row["epoch"])) for row in history if not math.isnan(row[config.monitor])]
    sign = 1 if config.mode == "min" else -1
    return min(((sign * value, epoch) for value, epoch in numbers), default=(0, 0))[1]


def finished(history: list[Row], config: TrainingConfig) -> bool:
    """Whether all epochs are done, or none of the last `patience` ones was better than those before."""
    if config.patience is not None and len(history) - best_epoch(history, config) >= config.patience:
        return True
    return len(history) >= config.epochs


def _problem(row: Row, values: dict[str, float], config: TrainingConfig) -> str:
    """What is wrong with the first row of a training, or any; "" where nothing is."""
    if taken := sorted(set(values) & set(OWN_VALUES)):
        return f"evaluate returns {', '.join(taken)}, which training itself fills: give other names"
    if config.monitor not in row:
        return f"monitor={config.monitor}: there is no such value; there are {', '.join(sorted(row))}"
    if not math.isfinite(row["train_loss"]):
        return (
            f"the loss became {row['train_loss']} in epoch {row['epoch']}: "
            f"lower learning_rate={config.learning_rate}, or look for such values in the data"
        )
    return ""


def _agreed(value: Any, device: torch.device) -> Any:
    """The first worker's value, on every worker."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0, device=device)
    return box[0]


class _Scalars:
    """The history for TensorBoard, in `tensorboard/` below the output.

    Epochs after the last checkpoint come again when a training is continued; TensorBoard is told to forget the former.
    """

    def __init__(self, output: str, begin: int) -> None:
        self._there = storage.join(output, "tensorboard")
        # Event files grow, and a store has only whole files.
        self._copy = tempfile.TemporaryDirectory(prefix="filmray-") if "://" in self._there else None
        folder = self._copy.name if self._copy else self._there
        os.makedirs(folder, exist_ok=True)
        # SummaryWriter leaves events in a queue when it is flushed; this is the file beneath it.
        self._file = EventsWriter(os.path.join(folder, "events"))
        if begin:
            start = _EVENTS.SessionLog(status=_EVENTS.SessionLog.START)
            self._file.write_event(_EVENTS.Event(wall_time=time.time(), step=begin + 1, session_log=start))

    def add(self, row: Row) -> None:
        """Write one epoch."""
        for name, value in row.items():
            if name != "epoch":
                summary = scalar(name, value)
                self._file.write_event(_EVENTS.Event(wall_time=time.time(), step=int(row["epoch"]), summary=summary))

    def publish(self) -> None:
        """Bring what was written to where it belongs."""
        self._file.flush()
        if self._copy:
            for path in Path(self._copy.name).iterdir():
                storage.upload(path, storage.join(self._there, path.name))


def _csv(history: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def draw_curves(history: list[Row], best: int) -> bytes:
    """A PNG with one panel for each value over the epochs, train_x and valid_x in one; the best epoch is marked."""
    panels: dict[str, list[str]] = {}
    for name in history[0]:
        if name not in ("epoch", "seconds"):
            panels.setdefault(name.removeprefix("train_").removeprefix("valid_"), []).append(name)
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    epochs = [row["epoch"] for row in history]
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            axis.plot(epochs, [row[name] for row in history], label=name, marker="." if len(history) == 1 else None)
        axis.axvline(best, color="grey", linestyle=":", label=f"best epoch, {best}")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize="small")
    for axis in axes[len(panels) :]:
        axis.remove()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def train(
    loop: Callable[[], Any],
    settings: dict[str, Any],
    *,
    seed: int,
    output: str,
    workers: int = 1,
    num_cpus: float = 1.0,
    use_gpu: bool = False,
    datasets: dict[str, Dataset] | None = None,
) -> ray_train.Result:
    """Run `loop()` on every worker to its end, starting from the last checkpoint of these very settings.

    The loop calls `restore` before its first step and `report` at every checkpoint. Python, NumPy and PyTorch draw from
    `seed` plus the rank of the worker. A worker that dies is replaced, twice at most.

    Args:
        settings: JSON values of all that the loop depends on; other values are another run, which starts at zero.
        output: a path or s3://bucket/prefix that every worker can write to; checkpoints go to `checkpoints/` in it.
        num_cpus: CPUs that one worker holds.
        datasets: what `ray.train.get_dataset_shard` gives to every worker whole, in one order.

    Returns:
        the result, with the last `metrics`, the `checkpoint` that `restore` reads, and as `return_value` what the first
        worker's loop returned

    Raises:
        ValueError: the cluster is too small for the workers.
        ray.train.TrainingFailedError: the loop raised, or workers died three times.
    """

    def seeded() -> Any:
        _seed(seed + ray_train.get_context().get_world_rank())
        return loop()

    datasets = datasets or {}
    reads = any(not isinstance(dataset, MaterializedDataset) for dataset in datasets.values())
    check_room("CPU", workers, num_cpus, keep=1 if reads else 0)
    check_room("GPU", workers, 1 if use_gpu else 0)
    described = json.dumps([settings, seed], sort_keys=True)
    trainer = TorchTrainer(
        seeded,
        scaling_config=ray_train.ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": num_cpus}
        ),
        run_config=ray_train.RunConfig(
            name=hashlib.sha256(described.encode()).hexdigest()[:16],
            storage_path=storage.join(storage.absolute(output), "checkpoints"),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
            failure_config=ray_train.FailureConfig(max_failures=2),
        ),
        datasets=dict(datasets),
        dataset_config=ray_train.DataConfig(
            datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)
        ),
    )
    return trainer.fit()


def _seed(*numbers: int) -> None:
    """Seed all that draws; a single number is PyTorch's seed as it is."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(numbers[0] if len(numbers) == 1 else state)


def check_room(resource: str, workers: int, each: float = 1, keep: float = 0) -> None:
    """Raise ValueError where a cluster has less than workers × each + keep of a resource, and does not grow by itself.

    Ray Train would wait for resources that never come; a cluster without workers yet grows by what is asked for.
    """
    there = ray.cluster_resources().get(resource, 0)
    if workers * each + keep > there and ray.cluster_resources().get("CPU"):
        reading = f" and {keep:g} to read the data" if keep else ""
        raise ValueError(
            f"workers={workers} need {workers * each:g} {resource}s{reading}, and the cluster has {there:g}: "
            "ask for fewer"
        )


def report(
    metrics: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, best: Tensors | None = None
) -> None:
    """Tell Ray Train the metrics (JSON values) with a checkpoint that `restore` can go on from; all workers call it.

    `model` is the bare module, not its distributed wrapper; `best` are weights to be kept beside the present ones.
    """
    if ray_train.get_context().get_world_rank() > 0:
        ray_train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
        pack(Path(folder, STATE), metrics, model, optimizer, best)
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(folder))


def pack(
    path: Path,
    metrics: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Tensors | None = None,
) -> None:
    """Write a checkpoint as one file of safetensors, which `unpack` reads; metrics (JSON values) are its metadata."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    for parameter, moments in optimizer.state_dict()["state"].items():
        for name, moment in moments.items():
            # 8-bit Adam counts its steps in a plain number and has a dictionary of what is quantised, which it takes
            # back without; its parameters share some of that, and a file of safetensors shares nothing.
            held = {n: t.clone() for n, t in moment.items()} if isinstance(moment, dict) else {name: moment}
            tensors |= {f"optimizer.{parameter}.{n}": torch.as_tensor(tensor) for n, tensor in held.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"metrics": json.dumps(metrics)})


def restore(
    checkpoint: ray_train.Checkpoint | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    best: Tensors | None = None,
) -> dict[str, Any]:
    """Load a checkpoint into the bare model and its optimizer, and the best weights into the dictionary.

    Returns its metrics, {} where there is none yet.
    """
    if checkpoint is None:
        return {}
    with checkpoint.as_directory() as folder:
        return unpack(Path(folder, STATE), model, optimizer, best)


def unpack(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, best: Tensors | None = None
) -> dict[str, Any]:
    """Load what `pack` made into the bare model and its optimizer, and the best weights; returns the metrics."""
    tensors, metrics = _read_file(path)
    model.load_state_dict(_below("model", tensors))
    if best is not None:
        best |= _below("best", tensors)
    if optimizer is not None:
        state = optimizer.state_dict()
        for name, tensor in _below("optimizer", tensors).items():
            parameter, moment = name.split(".")
            counts = tensor.ndim == 0 and not tensor.is_floating_point()
            state["state"].setdefault(int(parameter), {})[moment] = int(tensor) if counts else tensor
        optimizer.load_state_dict(state)
    return metrics


def _read(checkpoint: ray_train.Checkpoint) -> tuple[Tensors, dict[str, Any]]:
    with checkpoint.as_directory() as folder:
        return _read_file(Path(folder, STATE))


def metrics_of(path: Path) -> dict[str, Any]:
    """The metrics of a checkpoint, without its tensors."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["metrics"])


def _read_file(path: Path) -> tuple[Tensors, dict[str, Any]]:
    return load_file(path), metrics_of(path)


def _below(group: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{group}."): value for name, value in tensors.items() if name.startswith(f"{group}.")}
