"""Each loss against the official code's values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from tests.golden_files import Golden
from zscl.losses import distillation, feature_mse, image_image_loss, image_loss, text_loss

LOSSES = Golden("zscl_mtil/losses")


def value_and_gradient(loss, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student)
    value.backward()
    return value.detach(), student.grad


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize(("loss", "side"), [(image_loss, "row"), (text_loss, "col")])
def test_distillation_by_rows_and_by_columns(case: int, loss, side: str) -> None:
    temperature = LOSSES.meta["kd_cases"][case]["T"]
    teacher = LOSSES[f"kd{case}_teacher"]
    value, gradient = value_and_gradient(
        lambda student: loss(teacher, student, temperature), LOSSES[f"kd{case}_student"]
    )
    torch.testing.assert_close(value, LOSSES[f"kd{case}_{side}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, LOSSES[f"kd{case}_{side}_grad"], rtol=1e-5, atol=1e-5)


def test_distillation_keeps_the_teachers_entropy_and_has_the_gradient_of_the_kl_divergence() -> None:
    teacher, student = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 6)
    value, gradient = value_and_gradient(lambda logits: distillation(teacher, logits, 3.0), student)
    assert distillation(teacher, teacher, 3.0) > 0
    target = (teacher / 3).softmax(1)
    _, kl = value_and_gradient(
        lambda logits: 9 * F.kl_div((logits / 3).log_softmax(1), target, reduction="batchmean"), student
    )
    torch.testing.assert_close(gradient, kl)
    torch.testing.assert_close(value, 9 * torch.log(torch.tensor(6.0)))  # student uniform: -log(1/6) for any target


def test_image_image_loss_and_feature_mse() -> None:
    teacher, student = LOSSES["ii_teacher_feat"], LOSSES["ii_student_feat"]  # both normalised
    losses = {
        "ii": lambda features: image_image_loss(teacher, features, LOSSES["ii_scale"], LOSSES.meta["ii_T"]),
        "mse": lambda features: feature_mse(teacher, features),
    }
    for name, loss in losses.items():
        value, gradient = value_and_gradient(loss, student)
        torch.testing.assert_close(value, LOSSES[f"{name}_loss"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, LOSSES[f"{name}_grad"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
def test_label_smoothing(smoothing: float) -> None:
    value, gradient = value_and_gradient(
        lambda logits: F.cross_entropy(logits, LOSSES["ce_labels"].long(), label_smoothing=smoothing),
        LOSSES["ce_logits"],
    )
    torch.testing.assert_close(value, LOSSES[f"ce_ls{smoothing}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, LOSSES[f"ce_ls{smoothing}_grad"], rtol=1e-5, atol=1e-5)
