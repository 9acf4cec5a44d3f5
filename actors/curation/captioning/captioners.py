"""Who captions scenes, by captions.by; and whether that can be, before a run begins."""

import os

from actors.core.errors import UserError
from actors.curation.captioning.asking import Captioner
from actors.curation.captioning.settings import CaptionsConfig


class Key(str):
    """A key of a service, which is not shown by accident."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Key(…)"


def check_captioner(config: CaptionsConfig) -> None:
    """Raise UserError where a key, a library or a model of one's own is missing; asks nothing of a service."""
    if config.by == "transformers":
        from actors.curation.captioning.local import check_local_model

        check_local_model(config.model)
    elif config.by == "vllm":
        from actors.curation.captioning.engine import check_engine

        check_engine(config.model)
    else:
        load_captioner(config, key_of(config))


def key_of(config: CaptionsConfig) -> Key:
    """The service's key from the environment; raises UserError where it needs one and there is none."""
    if config.by == "openai":
        return Key(os.environ.get("OPENAI_API_KEY", "").strip())
    key = os.environ.get("GEMINI_API_KEY", "").strip()
    if not key:
        raise UserError(
            f"captions.by={config.by} needs a key: set GEMINI_API_KEY in the environment (https://aistudio.google.com "
            "makes them), or use captions.by=transformers captions.model=…"
        )
    return Key(key)


def load_captioner(config: CaptionsConfig, key: str) -> Captioner:
    """A captioner of a service; raises UserError where its library is missing."""
    if config.by == "openai":
        from actors.curation.captioning.chat import ChatCompletions

        return ChatCompletions(config, key)
    from actors.curation.captioning.gemini import GoogleGenai, GoogleGenerativeAI

    return GoogleGenai(config, key) if config.by == "google-genai" else GoogleGenerativeAI(config, key)
