"""The service that runs a model, by the setting `by`; and whether it can be used, before a run begins."""

import os

from actors.core.errors import UserError
from actors.models.vlm.asking import Service
from actors.models.vlm.settings import VlmConfig


class Key(str):
    """A key of a service, which is not shown by accident."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Key(…)"


def check_vlm(config: VlmConfig) -> None:
    """Raise UserError where a key, a library or a model of one's own is missing; asks nothing of a service."""
    if config.by == "transformers":
        from actors.models.vlm.local import check_local_model

        check_local_model(config)
    else:
        load_service(config, key_of(config))


def key_of(config: VlmConfig) -> Key:
    """The service's key from the environment; raises UserError where it needs one and there is none."""
    if config.by == "openai":
        return Key(os.environ.get("OPENAI_API_KEY", "").strip())
    key = os.environ.get("GEMINI_API_KEY", "").strip()
    if not key:
        raise UserError(
            f"{config.NAME}.by={config.by} needs a key: set GEMINI_API_KEY in the environment "
            f"(https://aistudio.google.com makes them), or use {config.NAME}.by=transformers {config.NAME}.model=…"
        )
    return Key(key)


def load_service(config: VlmConfig, key: str) -> Service:
    """The client of a service; raises UserError where its library is missing."""
    if config.by == "openai":
        from actors.models.vlm.chat import ChatCompletions

        return ChatCompletions(config, key)
    from actors.models.vlm.gemini import GoogleGenai, GoogleGenerativeAI

    return GoogleGenai(config, key) if config.by == "google-genai" else GoogleGenerativeAI(config, key)
