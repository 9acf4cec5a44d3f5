"""The tiny VAE that ships with the project: train it anew.

python -m jobs.tiny_vae train output=s3://runs/tiny_vae model.steps=20000 use_gpu=true
"""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from actors.core.errors import UserError
from jobs.core import run as job
from pipelines.tiny_vae.train import AutoencoderConfig, describe, measure, train_autoencoder, write

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.yaml] [key=value]...", help="Settings from a file, then single ones."),
]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`."""

    output: str = "output/tiny_vae"
    """A path or s3:// that every worker can write to: weights, card and checkpoints."""
    workers: int = 1
    """Processes that train side by side, each with a batch of its own."""
    use_gpu: bool = False
    """A GPU for each worker."""
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The model and how it is trained."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"workers starts at 1, not {self.workers}")


@app.callback()
def main() -> None:
    pass


@app.command()
def train(settings: Settings = None) -> None:
    """Train, measure on held-out pictures, write weights and card. The same command after a kill goes on."""
    with job.exit_codes():
        config = job.load(TrainConfig, settings or [])
        with job.ray_session():
            vae, metrics = train_autoencoder(
                config.model, output=config.output, workers=config.workers, use_gpu=config.use_gpu
            )
        figures = measure(vae)
        weights, card = write(config.output, vae, describe(config.model, config.workers, metrics, figures))
        begin = f", continued from step {metrics['resumed_from']}" if metrics["resumed_from"] else ""
        print(f"{metrics['step']} steps{begin}, loss {metrics['loss']:.4f}")
        print(f"PSNR on held-out film {figures.film_psnr:.2f} dB, on held-out stills {figures.stills_psnr:.2f} dB")
        print(f"weights: {weights}")
        print(f"card: {card}")


if __name__ == "__main__":
    app()
