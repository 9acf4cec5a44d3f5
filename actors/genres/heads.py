"""Heads that tell a film's classes from the embeddings of its frames.

Every head takes frames float32 (B, T, D) and a mask bool (B, T), True where there is a frame, and gives logits (B, C).
A film has at least one frame; where its padding stands (spec: on the left) and what is in it never matters.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool1d, normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from actors.genres.head_settings import HeadConfig


def make_head(config: HeadConfig, dimensions: int, classes: int) -> nn.Module:
    """The head for embeddings of D dimensions and C classes, with its first weights drawn by torch's generator."""
    match config.head:
        case "mean":
            return MeanProbe(dimensions, classes, config.dropout)
        case "lstm":
            return LstmHead(dimensions, classes, config)
        case "attention":
            return AttentionHead(dimensions, classes, config.attention, config.dropout)
        case "transformer":
            return TransformerHead(dimensions, classes, config)


class MeanProbe(nn.Module):
    """A linear layer on the direction in which a film's mean frame lies from that of all films.

    Frames count by their direction, too: CLIP's lengths say nothing of what is seen.
    """

    centre: Tensor
    """The mean over films, float32 (D,); zero until it is set."""

    def __init__(self, dimensions: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dimensions))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dimensions, classes)
        # Convex: weights that are drawn help nothing, and would be noise where training ends early.
        nn.init.zeros_(self.linear.weight)

    def features(self, frames: Tensor, mask: Tensor) -> Tensor:
        """The direction of each film, float32 (B, D), scaled to a mean square of 1."""
        means = mean_directions(frames, mask) - self.centre
        return normalize(means, dim=-1) * means.shape[-1] ** 0.5

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.dropout(self.features(frames, mask)))


class LstmHead(nn.Module):
    """LayerNorm, (bidirectional) LSTM, maximum over windows of time, their mean, a linear layer."""

    def __init__(self, dimensions: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimensions)
        self.lstm = nn.LSTM(
            dimensions, config.hidden_size, config.num_layers, batch_first=True, bidirectional=config.bidirectional
        )
        self.window, self.reference = config.max_pooling, config.reference
        width = config.hidden_size * (1 + config.bidirectional)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width // self.window if self.reference else width, classes)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        frames, mask = _left_aligned(frames, mask)
        lengths = mask.sum(1)
        packed = pack_padded_sequence(self.norm(frames), lengths.cpu(), batch_first=True, enforce_sorted=False)
        steps, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=frames.shape[1])
        if self.reference:
            last = steps[torch.arange(len(steps), device=steps.device), lengths - 1]
            return self.linear(self.dropout(max_pool1d(last[:, None], self.window)[:, 0]))
        steps = steps.masked_fill(~mask[..., None], -1.0)  # no output of an LSTM is below
        peaks = max_pool1d(steps.transpose(1, 2), min(self.window, steps.shape[1]), ceil_mode=True).transpose(1, 2)
        return self.linear(self.dropout(_masked_mean(peaks, mask[:, :: self.window])))


class AttentionHead(nn.Module):
    """Several learned weightings of the frames, each giving its weighted mean; a linear layer reads them all.

    Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", 2018, without the gate.
    """

    def __init__(self, dimensions: int, classes: int, queries: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimensions)
        self.score = nn.Sequential(nn.Linear(dimensions, 128), nn.Tanh(), nn.Linear(128, queries))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dimensions * queries, classes)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        frames = self.norm(_blanked(frames, mask))
        scores = self.score(frames).masked_fill(~mask[..., None], -torch.inf)
        means = torch.einsum("btq,btd->bqd", scores.softmax(1), frames)
        return self.linear(self.dropout(means.flatten(1)))


class TransformerHead(nn.Module):
    """LayerNorm, projection, sinusoidal places, transformer layers, the mean over frames, a linear layer."""

    def __init__(self, dimensions: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.project = nn.Sequential(nn.LayerNorm(dimensions), nn.Linear(dimensions, width))
        layer = nn.TransformerEncoderLayer(
            width, config.attention, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        frames, mask = _left_aligned(frames, mask)
        steps = self.project(frames)
        steps = steps + _places(steps.shape[1], steps.shape[2], steps.device)
        steps = self.norm(self.layers(steps, src_key_padding_mask=~mask))
        return self.linear(self.dropout(_masked_mean(steps, mask)))


def mean_directions(frames: Tensor, mask: Tensor) -> Tensor:
    """The mean of each film's frames at length 1, float32 (B, D)."""
    return _masked_mean(normalize(_blanked(frames, mask), dim=-1), mask)


def _blanked(frames: Tensor, mask: Tensor) -> Tensor:
    return frames.masked_fill(~mask[..., None], 0.0)


def _masked_mean(steps: Tensor, mask: Tensor) -> Tensor:
    return _blanked(steps, mask).sum(1) / mask.sum(1, keepdim=True)


def _left_aligned(frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Frames moved to the start of their film, in their order, with zeros behind."""
    order = (~mask).int().argsort(dim=1, stable=True)
    moved = _blanked(frames, mask).gather(1, order[..., None].expand_as(frames))
    return moved, mask.gather(1, order)


def _places(steps: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of the step, (T, D); Vaswani et al., "Attention Is All You Need", 2017."""
    rates = 10_000 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(steps, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
