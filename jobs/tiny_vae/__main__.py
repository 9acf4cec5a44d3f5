"""The tiny VAE that ships with the project: train it again.

python -m jobs.tiny_vae train output=s3://runs/tiny_vae model.steps=20000 num_gpus=1
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from actors.core.stage import Stage
from actors.core.store import Store
from jobs.core.status import Status
from jobs.core.verbs import Preview, Run, Verb, Verbs

if TYPE_CHECKING:
    from pipelines.tiny_vae.settings import TrainConfig

app = Verbs(__doc__)
app.verb(Status)


@app.verb
class Train(Verb):
    """Train, measure on held-out pictures, write weights and card. Rerun to resume."""

    def settings(self) -> "type[TrainConfig]":
        from pipelines.tiny_vae.settings import TrainConfig

        return TrainConfig

    def plan(self, config: "TrainConfig") -> list[Path]:
        from pipelines.tiny_vae.sources import sources

        return sources()

    def preview(self, config: "TrainConfig", plan: list[Path]) -> Preview:
        store, model = Store(config.output), config.model
        facts = [
            f"input: {', '.join(path.name for path in plan)}",
            f"to do: {model.steps} steps of {model.batch_size * config.workers} crops; resumes from a checkpoint",
        ]
        names = ("encoder.safetensors", "config.json", "README.md", "checkpoints", "runs/train.json")
        workers = Stage(config.workers, 1.0, config.num_gpus, model.batch_size)
        return Preview(facts, {name: store.uri(name) for name in names}, {"train": workers})

    def work(self, config: "TrainConfig", plan: list[Path], run: Run) -> None:
        from pipelines.tiny_vae.train import train

        run.ray()
        trained = train(config)
        metrics, figures = trained.metrics, trained.figures
        done = metrics["step"] - metrics["resumed_from"]
        run.stage("train", done * config.model.batch_size * config.workers, trained.seconds)
        run.record |= {name: metrics[name] for name in ("step", "loss", "resumed_from", "device")}
        run.record["figures"] = asdict(figures)
        begin = f", resumed from step {metrics['resumed_from']}" if metrics["resumed_from"] else ""
        run.say(f"{metrics['step']} steps{begin}, loss {metrics['loss']:.4f}")
        run.say(f"PSNR on held-out film {figures.film_psnr:.2f} dB, on held-out stills {figures.stills_psnr:.2f} dB")
        run.say(f"weights: {trained.weights}")
        run.say(f"card: {trained.card}")


if __name__ == "__main__":
    app()
