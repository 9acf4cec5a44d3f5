"""Settings of the head that is trained on a frozen network; imports no torch."""

from dataclasses import dataclass

from actors.core.errors import UserError


@dataclass(frozen=True)
class HeadConfig:
    """The layers that are trained on top of the frozen network."""

    hidden: int = 128
    """Width of the hidden layer, from 1. More units fit more directors, and overfit sooner on few films."""
    dropout: float = 0.5
    """Share of hidden units dropped in training, 0 to below 1. Raise it where training overfits."""
    balanced: bool = True
    """Weigh all directors alike in the loss, however many pictures each has. false: weigh all pictures alike."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"head.hidden must be 1 or more and head.dropout in [0, 1), not {self.hidden} and {self.dropout}"
            )
