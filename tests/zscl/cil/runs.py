"""Command lines of small class-incremental runs; `cil_world` of conftest.py names their data and weights."""

from pathlib import Path


def named(config: str) -> list[str]:
    """The arguments that choose a configuration."""
    return ["--config-path", "configs/class", "--config-name", f"{config}.yaml"]


def cifar(world: list[str], folder: Path, config: str = "cifar100_10-10-LwF", *words: str) -> list[str]:
    """The 100 made-up classes in four tasks."""
    sizes = ["initial_increment=40", "increment=20", "batch_size=16"]
    return [*named(config), *world, "class_order=class_orders/cifar100.yaml", *sizes, f"save={folder}", *words]
