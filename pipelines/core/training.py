"""Every training of the project, on Ray Train: seeded, in the store, and continued by the same call after a kill.

`fit` trains by epochs on Ray datasets. It stands on `train`, `report` and `restore`, which serve loops of other kinds.

One worker or several see the same batches and make the same steps, up to rounding: of every batch each takes its part,
and gradients are weighted by rows. To that end each worker reads all rows; where reading is dear (pictures to decode),
give `materialize()`d datasets. Layers that draw (dropout) or look across rows (batch norm) do so per worker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.core import storage
from actors.core.checkpoints import STATE, Tensors, below, read_file
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.core.curves import Row, draw_curves, write_curve_csv
from pipelines.core.progress import Progress, following
from pipelines.core.training_config import ELSEWHERE, TrainingConfig, best_epoch

if TYPE_CHECKING:
    from ray import train as ray_train
    from ray.data import Dataset
    from torch import Tensor, nn


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

    Args:
        make_model: builds the model with its first weights; parameters without `requires_grad` are not trained.
        loss: the mean loss over the rows of a batch, a scalar. It calls `model(...)` itself, not its methods or parts,
            so that the workers' gradients are averaged. It may look at the rows of all workers (an all-gather)
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
    from pipelines.core.epochs import run_epochs

    if set(datasets) != {"train", "valid"}:
        raise UserError(f"datasets are train and valid, not {', '.join(datasets) or 'none'}")
    store = Store(storage.absolute(output))
    described = {"training": asdict(config), **settings}
    store.write_json(described, "settings.json")
    result = train(
        partial(run_epochs, make_model, loss, evaluate, config, store.root),
        {**described, "training": {k: v for k, v in asdict(config).items() if k not in ELSEWHERE}},
        seed=config.seed,
        output=store.root,
        workers=config.workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        datasets=datasets,
        total=config.epochs,
    )
    return _kept(result, make_model, config, store)


def _kept(
    result: ray_train.Result, make_model: Callable[[], nn.Module], config: TrainingConfig, store: Store
) -> Trained:
    """Write weights and curves of a training that has ended; returns it with the best weights."""
    from safetensors.torch import save

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


def train(
    loop: Callable[[], Any],
    settings: dict[str, Any],
    *,
    seed: int,
    output: str,
    workers: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    datasets: dict[str, Dataset] | None = None,
    total: int | None = None,
    unit: str = "epochs",
) -> ray_train.Result:
    """Run `loop()` on every worker to its end, starting from the last checkpoint of these very settings.

    The loop calls `restore` before its first step and `report` at every checkpoint. Python, NumPy and PyTorch draw from
    `seed` plus the rank of the worker. A worker that dies is replaced, twice at most.

    Args:
        settings: JSON values of all that the loop depends on; other values are another run, which starts at zero.
        output: a path or s3://bucket/prefix that every worker can write to; checkpoints go to `checkpoints/` in it.
        num_cpus: CPUs that one worker holds.
        datasets: what `ray.train.get_dataset_shard` gives to every worker whole, in one order.
        total: how many units of progress there are at most; workers tell how far they are by a ProgressFile.

    Returns:
        the result: last `metrics`, `checkpoint` (for `restore`), and `return_value`, that of the first worker's loop

    Raises:
        UserError: the cluster is too small for the workers, or the loop raised it, on any of them.
        ray.train.TrainingFailedError: the loop raised another error, or workers died three times.
    """
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    from pipelines.core.epochs import seed_all
    from pipelines.core.failed_trainings import end_at_once, users_fault

    def seeded() -> Any:
        seed_all(seed + ray_train.get_context().get_world_rank())
        return loop()

    trainer = TorchTrainer(
        seeded,
        scaling_config=_room(workers, num_cpus, num_gpus, datasets or {}),
        run_config=_run(json.dumps([settings, seed], sort_keys=True), output),
        datasets=dict(datasets or {}),
        dataset_config=_whole(),
    )
    end_at_once(trainer)
    with following(storage.absolute(output), Progress("train", total, unit)):
        try:
            return trainer.fit()
        except ray_train.TrainingFailedError as error:
            if fault := users_fault(error):
                raise fault from error
            raise


def _room(workers: int, num_cpus: float, num_gpus: float, datasets: dict[str, Dataset]) -> ray_train.ScalingConfig:
    """The workers and what each holds; raises UserError where the cluster is too small."""
    from ray import train as ray_train
    from ray.data.dataset import MaterializedDataset

    reads = any(not isinstance(dataset, MaterializedDataset) for dataset in datasets.values())
    check_room("CPU", workers, num_cpus, keep=1 if reads else 0)
    check_room("GPU", workers, num_gpus)
    each = {"CPU": num_cpus, **({"GPU": num_gpus} if num_gpus else {})}
    return ray_train.ScalingConfig(num_workers=workers, use_gpu=num_gpus > 0, resources_per_worker=each)


def _whole() -> ray_train.DataConfig:
    """Every worker gets all rows, in one order."""
    from ray import train as ray_train
    from ray.data import ExecutionOptions

    return ray_train.DataConfig(datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True))


def _run(described: str, output: str) -> ray_train.RunConfig:
    """Where checkpoints are: those of the same description are continued."""
    from ray import train as ray_train

    return ray_train.RunConfig(
        name=hashlib.sha256(described.encode()).hexdigest()[:16],
        storage_path=storage.join(storage.absolute(output), "checkpoints"),
        checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
        failure_config=ray_train.FailureConfig(max_failures=2),
    )


def check_room(resource: str, workers: int, each: float = 1, keep: float = 0) -> None:
    """Raise UserError where a cluster has less than workers × each + keep of a resource, and does not grow by itself.

    Ray Train would wait for resources that never come; a cluster without workers yet grows by what is asked for.
    """
    import ray

    there = ray.cluster_resources().get(resource, 0)
    if workers * each + keep > there and ray.cluster_resources().get("CPU"):
        reading = f" and {keep:g} to read the data" if keep else ""
        raise UserError(
            f"workers={workers} need {workers * each:g} {resource}s{reading}, and the cluster has {there:g}: "
            "ask for fewer"
        )


def _read(checkpoint: ray_train.Checkpoint) -> tuple[Tensors, dict[str, Any]]:
    with checkpoint.as_directory() as folder:
        return read_file(Path(folder, STATE))
