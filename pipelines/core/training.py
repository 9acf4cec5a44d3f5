"""Every training of the project, on Ray Train: seeded, in the store, and continued by the same call after a kill.

`fit` trains by epochs on Ray datasets. It stands on `train`, `report` and `restore`, which serve loops of other kinds.
"""

import hashlib
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from ray import train as ray_train
from ray.data import Dataset, ExecutionOptions
from ray.data.dataset import MaterializedDataset
from ray.train.torch import TorchTrainer, get_device, prepare_model
from safetensors.torch import save
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from actors.core import storage
from actors.core.checkpoints import STATE, Tensors, below, pack, read_file, unpack
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.core.curves import Row, Scalars, draw_curves, write_curve_csv
from pipelines.core.training_rows import Rows, Share, pieces, row_count

OWN_VALUES = ("epoch", "train_loss", "learning_rate", "seconds")
"""What every row of a history holds beside the values of `evaluate`: number from 1, mean loss, rate, its duration."""


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
                raise UserError(f"{name} starts at 1, not {getattr(self, name)}")
        for name in ("learning_rate", "decay_ratio", "num_cpus", *(("clip",) if self.clip is not None else ())):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is above 0, not {getattr(self, name)}")
        if min(self.seed, self.checkpoint_s, self.weight_decay) < 0:
            raise UserError(f"seed, checkpoint_s and weight_decay start at 0: {self}")


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
        UserError: no such monitored value or none that is a number, no rows, a loss that is not finite, or a cluster
            that is too small.
        ray.train.TrainingFailedError: the functions raised, or workers died three times.
    """
    if set(datasets) != {"train", "valid"}:
        raise UserError(f"datasets are train and valid, not {', '.join(datasets) or 'none'}")
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
        raise UserError(problem)
    assert result.checkpoint is not None
    tensors, metrics = _read(result.checkpoint)
    history: list[Row] = metrics["history"]
    best_number = best_epoch(history, config)
    if not best_number:
        raise UserError(f"{config.monitor} was not a number in any epoch: monitor another value")
    best = below("best", tensors)
    for name, weights in (("model", best), ("last", below("model", tensors))):
        storage.write_bytes(store.uri(f"{name}.safetensors"), save(weights))
    storage.write_bytes(store.uri("curves.csv"), write_curve_csv(history))
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
    scalars = Scalars(output, begin) if rank == 0 else None
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
        parts = list(pieces(share.batch, accumulate))
        for number, piece in enumerate(parts):
            last = number == len(parts) - 1
            # Gradients travel once a step.
            alone = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
            with alone:
                with autocast():
                    value = loss(model, piece).float() * (row_count(piece) if share.counts else 0)
                # The workers' gradients are averaged, which divides by their number.
                (value * workers / share.rows).backward()
            total = total.to(value.device) + value.detach()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        count += share.rows
    return total, count


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
        UserError: the cluster is too small for the workers.
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
    """Raise UserError where a cluster has less than workers × each + keep of a resource, and does not grow by itself.

    Ray Train would wait for resources that never come; a cluster without workers yet grows by what is asked for.
    """
    there = ray.cluster_resources().get(resource, 0)
    if workers * each + keep > there and ray.cluster_resources().get("CPU"):
        reading = f" and {keep:g} to read the data" if keep else ""
        raise UserError(
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


def _read(checkpoint: ray_train.Checkpoint) -> tuple[Tensors, dict[str, Any]]:
    with checkpoint.as_directory() as folder:
        return read_file(Path(folder, STATE))
