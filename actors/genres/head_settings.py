"""Settings of the heads that classify films; imports no torch."""

from dataclasses import dataclass
from typing import Literal

from actors.core.errors import UserError


@dataclass(frozen=True)
class HeadConfig:
    """Which head, and its size. The defaults of the LSTM are the reference's."""

    head: Literal["mean", "lstm", "attention", "transformer"] = "mean"
    """How key frames are combined: their mean, an LSTM over their order, attention pooling, or a transformer."""
    hidden_size: int = 128
    """Hidden units of the LSTM (per direction) or width of the transformer."""
    num_layers: int = 1
    """Layers of the LSTM or of the transformer, from 1."""
    bidirectional: bool = False
    """LSTM: read the film in both directions."""
    max_pooling: int = 4
    """LSTM: window of max pooling over time, in key frames; the windows are then averaged."""
    reference: bool = False
    """LSTM as the reference has it, for comparison: maximum over channels of the last step only."""
    attention: int = 4
    """Attention poolings, or attention heads of the transformer, from 1."""
    dropout: float = 0.0
    """Dropout before the last layer during training, in [0, 1)."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "max_pooling", "attention"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} starts at 1, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout lies in [0, 1), not at {self.dropout}")
        if self.head == "transformer" and self.hidden_size % (2 * self.attention):
            raise UserError(f"hidden_size {self.hidden_size} must be a multiple of 2 x attention, {2 * self.attention}")
        if self.reference and self.head != "lstm":
            raise UserError(f"reference is a form of head=lstm, not of {self.head}")
        if self.reference and self.hidden_size * (1 + self.bidirectional) < self.max_pooling:
            raise UserError(f"max_pooling {self.max_pooling} over fewer channels: {self.hidden_size}")
