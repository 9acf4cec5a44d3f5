"""What personalising a diffusion model to a character depends on: the settings of `personalise`, and one identity."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from actors.core.errors import UserError
from actors.movie_characters.diffusion import OneByOne, check_size
from actors.movie_characters.names import Picture, class_of

DONE = "personalised.json"
"""In the folder of an identity, written last: settings, losses, seconds."""

# In YAML a bare no is false.
Precision = Annotated[
    Literal["auto", "no", "fp16", "bf16"], BeforeValidator(lambda given: "no" if given is False else given)
]


@dataclass(frozen=True)
class Together:
    """Workers that train one identity together, on Ray Train."""

    workers: int = 1
    """Workers that share the rows of every step of an identity (data parallel), each with the CPUs and GPUs of a worker
    of `diffusion`. 1: every worker of `diffusion` trains identities of its own, which suits many identities. More:
    identities are trained one after the other, which suits few identities and many GPUs."""
    shard: bool = False
    """Divide the network over these workers (FSDP2): each keeps 1/workers of its weights, gradients and moments. For a
    model that does not fit one GPU; slower, since weights travel in every pass. Needs workers above 1."""


@dataclass(frozen=True)
class PersonaliseConfig:
    """Settings of `personalise`."""

    ALIASES: ClassVar[dict[str, Any]] = {
        "input_image": "input",
        "output_dir": "output",
        "num_gpus": "diffusion.num_gpus",
    }

    input: str | tuple[str, ...]
    """Images named CLASS_NUMBER: one image, a folder, a .txt file that lists one a line, or several of these; paths or
    s3://."""
    output: str
    """Where the identity folders CLASS_NUMBER/ are written: a path or s3://."""
    pretrained_model_name_or_path: str = "CompVis/stable-diffusion-v1-4"
    """The model to personalise, a StableDiffusion, StableDiffusionXL, StableDiffusion3 or Flux: a name on the Hugging
    Face Hub, or a folder saved by diffusers. Its name and some of its weights are recorded with each identity."""
    target_text: str = "a photo of {}"
    """The prompt. {} stands for the class, with spaces for underscores."""
    method: Literal["lora", "imagic", "textual_inversion"] = "lora"
    """What is trained: lora (an embedding and a low-rank addition to the network, megabytes per identity), imagic (an
    embedding and all of the UNet, gigabytes), textual_inversion (a new word only, kilobytes). The latter two are for
    StableDiffusion."""
    together: bool = False
    """Train one identity, CLASS_0, from all images of a class; false trains one identity per image."""
    resolution: int = 512
    """Side in pixels of the square that is cropped from each image; a multiple of 8, of 16 for StableDiffusion3 and
    Flux. StableDiffusionXL and later models expect 1024."""
    center_crop: bool = False
    """Crop in the middle; false crops at a random place, drawn once per image from seed and file name."""
    train_batch_size: int = 4
    """Noisy latents in one forward pass. Lower it when memory runs out, and raise gradient_accumulation_steps."""
    emb_train_steps: int = 500
    """Optimizer steps of the embedding, or of the new word of textual inversion; 0 trains the LoRA or UNet with the
    embedding of the prompt, as training scripts of diffusers do."""
    max_train_steps: int = 1000
    """Optimizer steps of the network or its LoRA; unused by textual inversion."""
    gradient_accumulation_steps: int = 1
    """Forward and backward passes before each optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations of the network in the backward pass: less memory, more time."""
    emb_learning_rate: float = 1e-3
    """Learning rate of the embedding, or of the new word of textual inversion."""
    learning_rate: float = 1e-6
    """Learning rate of the UNet; used by method=imagic."""
    lora_learning_rate: float = 1e-4
    """Learning rate of the LoRA; used by method=lora in place of learning_rate."""
    lora_rank: int = 4
    """Rank of the LoRA; a higher rank can hold more detail in a larger file."""
    scale_lr: bool = False
    """Multiply all learning rates by train_batch_size · gradient_accumulation_steps."""
    use_8bit_adam: bool = False
    """Keep Adam's moments in 8 bits, which saves memory; needs the extra adam8bit (bitsandbytes)."""
    adam_beta1: float = 0.9
    """Decay rate of Adam's first moment, in [0, 1)."""
    adam_beta2: float = 0.999
    """Decay rate of Adam's second moment, in [0, 1)."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay (AdamW) of the network or its LoRA. Embeddings have none, since they would drift to
    zero."""
    adam_epsilon: float = 1e-8
    """Term added to the denominator of Adam's update, for numerical stability."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are clipped to this norm."""
    mixed_precision: Precision = "auto"
    """Precision in which the network computes; trained weights and losses are always float32. auto: bf16 on a GPU, no
    (float32) on a CPU. fp16 without a GPU becomes no. On a GPU float32 products are rounded to TF32."""
    seed: int = 0
    """Seed of crops, timesteps, noise and initial LoRA weights."""
    log_interval: int = 10
    """Steps between two recorded losses, each the mean over these steps."""
    push_to_hub: bool = False
    """Upload the identity folders to the Hugging Face Hub when all are trained; needs hub_model_id and HF_TOKEN."""
    hub_model_id: str | None = None
    """Repository on the Hugging Face Hub for push_to_hub, as ORGANISATION/NAME."""
    checkpoint_s: float = 300.0
    """Seconds between two checkpoints of an identity, which is the most a kill can cost; 0 saves after every step."""
    diffusion: OneByOne = field(default_factory=OneByOne)
    """Workers, each of which trains one identity at a time; with training.workers above 1, what each of those has. Its
    dtype, compile and evaluations_per_call are unused here."""
    training: Together = field(default_factory=Together)
    """Workers that train one identity together."""
    autoscaling: bool = False
    """The cluster grows on demand, so worker pools need not fit its present size."""

    def __post_init__(self) -> None:
        check_size(resolution=self.resolution)
        counts = ("train_batch_size", "gradient_accumulation_steps", "lora_rank", "log_interval")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} starts at 1, not {getattr(self, name)}")
        for name in ("emb_train_steps", "max_train_steps", "seed", "checkpoint_s", "adam_weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} starts at 0, not {getattr(self, name)}")
        for name in ("emb_learning_rate", "learning_rate", "lora_learning_rate", "max_grad_norm", "adam_epsilon"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 1 <= self.training.workers <= self.rows_per_step:
            raise UserError(
                f"training.workers={self.training.workers} is outside 1..{self.rows_per_step}: a step has "
                "train_batch_size · gradient_accumulation_steps rows, of which each worker needs one"
            )
        if self.training.shard and self.training.workers == 1:
            raise UserError("training.shard=true divides a network over workers. Set training.workers=2 or more.")
        if self.training.shard and (self.use_8bit_adam or self.precision == "fp16"):
            raise UserError("training.shard=true is without use_8bit_adam and mixed_precision=fp16. Set bf16 or no.")
        if self.push_to_hub and not self.hub_model_id:
            raise UserError("push_to_hub needs a repository. Set hub_model_id=ORGANISATION/NAME.")
        if self.method == "textual_inversion" and "{}" not in self.target_text:
            raise UserError(f"target_text={self.target_text!r} has no {{}}, the place of the word that is trained.")

    @property
    def rows_per_step(self) -> int:
        """Noisy latents of one optimizer step, over all workers."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def precision(self) -> Literal["no", "fp16", "bf16"]:
        """mixed_precision as the device allows it: CPUs compute fp16 slowly or not at all."""
        if self.mixed_precision == "auto":
            return "bf16" if self.diffusion.num_gpus else "no"
        return "no" if self.mixed_precision == "fp16" and not self.diffusion.num_gpus else self.mixed_precision

    def learns(self) -> dict[str, Any]:
        """All settings that change what is trained, as JSON values; a precision that was not chosen as it came out."""
        elsewhere = ("input", "output", "checkpoint_s", "push_to_hub", "hub_model_id", "training", "autoscaling")
        return {
            **{name: value for name, value in asdict(self).items() if name not in (*elsewhere, "diffusion")},
            "mixed_precision": self.precision if self.mixed_precision == "auto" else self.mixed_precision,
            "gpu": self.diffusion.num_gpus > 0,
        }


@dataclass(frozen=True)
class Task:
    """One identity to be trained."""

    name: str
    pictures: tuple[Picture, ...]
    settings: str
    """Digest of the settings and of the images' names."""

    @property
    def of(self) -> str:
        """Its class, as it stands in a prompt."""
        return class_of(self.name).replace("_", " ")
