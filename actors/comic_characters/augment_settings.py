"""Settings of the views for contrastive learning; imports no torch."""

from dataclasses import dataclass, field

from actors.core.errors import UserError


@dataclass(frozen=True)
class ViewsConfig:
    """Augmentation: how each view differs from its picture."""

    flip: float = 0.5
    """Share of views that are mirrored, 0 to 1."""
    min_scale: float = 0.2
    """Least share of the picture's area that a view shows, above 0 to 1."""
    jitter: float = 0.8
    """Share of views whose colours change, 0 to 1."""
    brightness: float = 0.5
    """Strength x of the change of brightness, 0 to 1: a factor from 1 - x to 1 + x."""
    contrast: float = 0.5
    """Strength x of the change of contrast, 0 to 1: a factor from 1 - x to 1 + x."""
    saturation: float = 0.5
    """Strength x of the change of saturation, 0 to 1: a factor from 1 - x to 1 + x."""
    hue: float = 0.1
    """Largest change of hue either way, in turns of the colour wheel, 0 to 0.5."""
    light: float = 0.0
    """Strength x of a coloured light, 0 to 1: red, green and blue each get a factor from 1 - x to 1 + x. Raise it where
    panels are tinted, because a face and its body then match by the colour of their panel."""
    grey: float = 0.2
    """Share of views without colour, 0 to 1."""
    max_sigma: float = 2.0
    """Largest sigma of the blur in pixels, from 0.1; the least is 0.1."""
    mask: float = 0.0
    """Share of views, 0 to 1, in which a rectangle of 2 to 33 % of the area is hidden."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "brightness", "contrast", "saturation", "light", "grey", "mask"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"views.{name} must be in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5 or not 0 < self.min_scale <= 1 or self.max_sigma < 0.1:
            raise UserError(
                f"views: hue must be in [0, 0.5], min_scale in (0, 1] and max_sigma 0.1 or more, not {self.hue}, "
                f"{self.min_scale} and {self.max_sigma}"
            )


@dataclass(frozen=True)
class CopiesConfig:
    """Augmentation for a frozen network: so many views of each crop, whose features are computed once and stored."""

    copies: int = 8
    """Views of each crop, from 1. An epoch takes one of them or the crop itself, at random."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """How each view differs from its crop."""

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise UserError(f"fine_tune.augment.copies starts at 1, not {self.copies}")
