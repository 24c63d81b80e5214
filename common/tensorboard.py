"""TensorBoard's files of a run (--tensorboard): curves of the training steps, and the recorded numbers after tasks."""

from pathlib import Path
from typing import Any

from common.errors import UserError


class Watcher:
    """Writes event files into a folder; raises UserError where TensorBoard is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("tensorboard: the package cannot be read. Install it: pip install tensorboard") from error
        self.writer = SummaryWriter(str(folder))

    def curves(self, stage: str, log: dict[str, Any], first: int, stop: int) -> None:
        """Steps first .. stop - 1 of every tensor (steps,) of a stage's log, as `<stage>/<its name>`."""
        for name, values in log.items():
            for step, value in enumerate(values[first:stop].tolist(), start=first):
                self.writer.add_scalar(f"{stage}/{name}", value, step)
        self.writer.flush()

    def records(self, lines: list[dict[str, Any]]) -> None:
        """Record lines as `<metric>/<data set>` over the tasks learnt, below a protocol where they name one."""
        for line in lines:
            if isinstance(line["value"], int | float):
                tag = "/".join([*([line["protocol"]] if "protocol" in line else []), line["metric"], line["dataset"]])
                self.writer.add_scalar(tag, line["value"], line["after_task"])
        self.writer.flush()
