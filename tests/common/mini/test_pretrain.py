"""The pre-training's loop: what it trains with what, and that the same seed makes the same weights."""

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.mini import pretrain

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
IMAGES, LABELS = 300, torch.arange(300) % 3


def pictures() -> Tensor:
    return torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1)) + LABELS[:, None, None, None]


def trained(steps: int, seed: int) -> tuple[nn.Module, list[str]]:
    torch.manual_seed(3)
    model, shown, log = VisionTransformer(**SIZES), pictures(), []
    pretrain.optimise(
        model, lambda batch: F.cross_entropy(model(shown[batch]), LABELS[batch]), IMAGES, steps, seed, log
    )
    return model, log


def test_the_same_seed_makes_the_same_weights_and_another_one_others() -> None:
    (one, log), (same, _), (other, _) = trained(100, 0), trained(100, 0), trained(100, 1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.head.weight, other.head.weight)
    assert len(log) == 1 and float(log[0].removeprefix("step 100 loss ")) < np.log(3)


def test_a_step_is_muons_on_the_blocks_matrices_and_adamws_on_the_rest() -> None:
    """Two steps written out, at a hundredth and two hundredths of the rate; weights that are no matrices do not decay."""
    torch.manual_seed(3)
    plain, shown, order = VisionTransformer(**SIZES), pictures(), np.random.default_rng(0)
    named = dict(plain.named_parameters())
    matrices = [name for name in named if named[name].ndim == 2 and name.startswith("blocks.0.")]
    assert len(matrices) == 4
    others = [name for name in named if name not in matrices]
    muon = torch.optim.Muon([named[name] for name in matrices], weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = [
        torch.optim.AdamW([named[name]], betas=(0.9, 0.98), weight_decay=0.05 if named[name].ndim >= 2 else 0.0)
        for name in others
    ]
    for step in (1, 2):  # the first 256 of 300 images are taken, the rest would not fill a batch
        batch = order.permutation(IMAGES)[:256]
        plain.zero_grad()
        F.cross_entropy(plain(shown[batch]), LABELS[batch]).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for optimizer in (muon, *adam):
            optimizer.param_groups[0]["lr"] = 5e-3 * step / 100
            optimizer.step()
    for (name, expected), found in zip(named.items(), trained(2, 0)[0].parameters()):
        assert torch.allclose(found, expected, rtol=0, atol=1e-7), name
