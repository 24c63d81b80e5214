"""TensorBoard's files of a run (--tensorboard): curves of the training steps, and the recorded numbers after tasks."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from common.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def writer_class() -> "type[SummaryWriter]":
    """torch's SummaryWriter. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("tensorboard: the package is not installed. Install it: pip install tensorboard") from error
    return SummaryWriter


def write_curves(writer: "SummaryWriter", stage: str, log: dict[str, Tensor], first: int, stop: int) -> None:
    """Write steps first .. stop - 1 of every tensor (steps,) of a stage's log, as `<stage>/<its name>`."""
    for name, values in log.items():
        for step, value in enumerate(values[first:stop].tolist(), start=first):
            writer.add_scalar(f"{stage}/{name}", value, step)
    writer.flush()


def write_records(writer: "SummaryWriter", lines: list[dict[str, Any]]) -> None:
    """Write record lines as `<metric>/<data set>` over the tasks learnt, below the protocol of a line that has one."""
    for line in lines:
        if isinstance(line["value"], int | float):
            tag = "/".join([*([line["protocol"]] if "protocol" in line else []), line["metric"], line["dataset"]])
            writer.add_scalar(tag, line["value"], line["after_task"])
    writer.flush()
