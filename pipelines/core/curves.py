"""Training curves: TensorBoard events, CSV and PNG."""

import csv
import io
import math
import os
import time
from typing import Any

from actors.core import storage
from actors.core.temporary import TemporaryFolder

Row = dict[str, float]
"""One epoch of a history."""


class Scalars:
    """The history for TensorBoard, in `tensorboard/` below the output.

    Epochs after the last checkpoint come again when a training is continued; TensorBoard is told to forget the former.
    """

    def __init__(self, output: str, begin: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._there = storage.join(output, "tensorboard")
        # Event files grow, and a store has only whole files.
        self._copy = TemporaryFolder() if "://" in self._there else None
        folder = str(self._copy.path) if self._copy else self._there
        os.makedirs(folder, exist_ok=True)
        # SummaryWriter leaves events in a queue when it is flushed; this is the file beneath it.
        self._file = EventsWriter(os.path.join(folder, "events"))
        if begin:
            events = _events()
            start = events.SessionLog(status=events.SessionLog.START)
            self._file.write_event(events.Event(wall_time=time.time(), step=begin + 1, session_log=start))

    def add(self, row: Row) -> None:
        """Write one epoch."""
        from tensorboardX.summary import scalar

        events = _events()
        for name, value in row.items():
            if name != "epoch":
                summary = scalar(name, value)
                self._file.write_event(events.Event(wall_time=time.time(), step=int(row["epoch"]), summary=summary))

    def publish(self) -> None:
        """Bring what was written to where it belongs."""
        self._file.flush()
        if self._copy:
            for path in self._copy.path.iterdir():
                storage.upload(path, storage.join(self._there, path.name))


def _events() -> Any:
    """Generated code without types."""
    from tensorboardX.proto import event_pb2

    return event_pb2


def write_curve_csv(history: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def draw_curves(history: list[Row], best: int) -> bytes:
    """A PNG with one panel for each value over the epochs, train_x and valid_x in one; the best epoch is marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, list[str]] = {}
    for name in history[0]:
        if name not in ("epoch", "seconds"):
            panels.setdefault(name.removeprefix("train_").removeprefix("valid_"), []).append(name)
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    epochs = [row["epoch"] for row in history]
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            axis.plot(epochs, [row[name] for row in history], label=name, marker="." if len(history) == 1 else None)
        axis.axvline(best, color="grey", linestyle=":", label=f"best epoch, {best}")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        # Below the axes it covers no point.
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    for axis in axes[len(panels) :]:
        axis.remove()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()
