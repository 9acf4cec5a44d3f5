"""Settings of captions: who makes them, what is asked, how fast and at what price."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from actors.core.errors import UserError
from actors.curation.captioning.styles import IMPROVED, StyleName, check_prompt, prompt_id, prompt_of
from actors.models.vlm.settings import VlmConfig


@dataclass(frozen=True)
class CaptionsConfig(VlmConfig):
    """Which model captions scenes, what it is asked, how fast and at what price."""

    NAME: ClassVar[str] = "captions"

    batch_size: int = 8
    """Captions that a model in a worker makes at once, for captions.by=transformers and vllm. More are faster while
    memory lasts; for vllm set 32 or more."""
    by: Literal["google-genai", "google-generativeai", "openai", "transformers", "vllm"] = "google-genai"
    """Who runs the model. google-genai, or its predecessor google-generativeai (extra of that name): Google's service,
    with GEMINI_API_KEY in the environment; openai: any server with the OpenAI chat-completions protocol (vLLM, SGLang,
    Ollama, LiteLLM), with its key, if it needs one, in OPENAI_API_KEY; transformers (extra of that name): an
    image-text-to-text model in workers; vllm (extra of that name): the same with the vLLM engine, on GPUs."""
    styles: tuple[StyleName, ...] = (IMPROVED,)
    """The captions of each scene, each of which is a request. improved: the caption of the input with more detail,
    lowercase, at most 100 words, as in the reference system; it becomes `recaption`. short: one sentence. long: 50 to
    250 words. tags: 5 to 20 of them. structured: JSON with subject, action, camera, light and style. free: any text of
    up to 400 words in any language, by captions.prompt."""
    prompt: str | None = None
    """The text beside the pictures, in place of that of the one style in captions.styles, whose rules hold. {caption}
    is the caption of the input, {title} the video's id, {duration} the scene's seconds; write {{ and }} for braces.
    null: the style's own."""
    again: bool = False
    """Request captions also for scenes whose answer came from another model, prompt or caption; false: any answer
    counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_styles()
        if self.by == "vllm" and (self.num_gpus < 1 or self.num_gpus != int(self.num_gpus)):
            raise UserError(
                f"captions.num_gpus={self.num_gpus:g}: captions.by=vllm needs GPUs. Set how many the model of one "
                "worker is spread over, from 1."
            )

    def _check_styles(self) -> None:
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise UserError(f"captions.styles={list(self.styles)}: name at least one style, and each once")
        if self.prompt is None:
            if "free" in self.styles:
                raise UserError("captions.styles: the style free needs captions.prompt=…, which says what is asked")
            return
        if len(self.styles) > 1:
            raise UserError("captions.prompt is the text of one style: name one in captions.styles")
        check_prompt(self.prompt)

    def prompt_of(self, style: StyleName) -> str:
        """What is asked for a style, with names in braces."""
        return prompt_of(style, self.prompt)

    def prompt_id(self, style: StyleName) -> str:
        """Names that prompt in stored answers."""
        return prompt_id(self.prompt_of(style))
