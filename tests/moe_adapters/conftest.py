"""A small world at the papers' scale: made-up data in the true layouts, a tiny CLIP archive, a random AlexNet."""

from pathlib import Path

import pytest
import torch
import torchvision

from common.clip.model import CLIP, CLIPConfig
from tests.clip_archive import save_archive
from tests.fake_data import write


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name the data, the CLIP and the AlexNet of this world, one BLAS thread's worth of each."""
    root = tmp_path_factory.mktemp("world")
    write(root / "data", ["MNIST", "EuroSAT", "DTD", "TinyImagenet"])
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    save_archive(CLIP(CLIPConfig(32, 32, 2, 64, 8, 77, 49408, 64, 1, 2)).state_dict(), root / "ViT-tiny.pt")
    torch.save(torchvision.models.alexnet().state_dict(), root / "alexnet.pth")
    torch.set_rng_state(generator_state)
    return [
        "--data-location",
        str(root / "data"),
        "--no-verify",
        "--model",
        str(root / "ViT-tiny.pt"),
        "--chooser-features",
        str(root / "alexnet.pth"),
        "--device",
        "cpu",
        "--workers",
        "0",
    ]


METHOD = [
    "--ffn_adapt",
    "--apply_moe",
    "--experts_num",
    "4",
    "--ls",
    "0.2",
    "--batch-size",
    "8",
    "--warmup_length",
    "2",
]
SEQUENCE = [
    *METHOD,
    "--train-dataset",
    "MNIST,EuroSAT,DTD",
    "--lr",
    "1e-2,5e-3,1e-2",
    "--iterations",
    "5",
    "--is_train",
    "--frozen",
    "--train_chooser",
    "--chooser-iterations",
    "4,3",
    "--eval-datasets",
    "MNIST,EuroSAT,DTD",
    "--autorouter",
    "--threshold",
    "0.0005",
]


@pytest.fixture(scope="session")
def finished_run(tiny_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one unbroken sequence."""
    from moe_adapters.main import main

    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    main([*SEQUENCE, *tiny_world, "--save", str(folder)])
    return folder
