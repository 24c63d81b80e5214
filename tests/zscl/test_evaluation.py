"""Zero-shot classifier, metrics and schedule of the official code, on its arrays; among them two published matrices."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common import datasets
from common.clip.model import build_model
from common.datasets.transforms import clip_eval
from common.evaluation.metrics import mtil_triple
from common.evaluation.pixels import load_decoded
from common.evaluation.zero_shot import accuracy, class_vectors, zeroshot_logits
from common.training.schedules import cosine_with_warmup
from tests.golden_files import Golden
from tests.zscl.trajectory import weights_under
from zscl.evaluation import evaluate

METRICS, EVALUATION, SCHEDULE = (Golden(f"zscl_mtil/{name}") for name in ("metrics", "zeroshot_eval", "lr_schedule"))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@torch.no_grad()
def test_classifier_logits_and_accuracies() -> None:
    model = build_model(weights_under(EVALUATION, "w/"))
    classifier = class_vectors(model, EVALUATION["tokens"])
    features = model.encode_image(EVALUATION["x_test"].float())
    logits = zeroshot_logits(features, classifier)
    torch.testing.assert_close(classifier, EVALUATION["classifier"], **TOLERANCE)
    torch.testing.assert_close(features, EVALUATION["image_features"], **TOLERANCE)
    torch.testing.assert_close(logits, EVALUATION["logits"], **TOLERANCE)
    top1, top5 = accuracy(logits, EVALUATION["y_test"])
    assert (top1, top5) == pytest.approx((EVALUATION["top1"].item(), EVALUATION["top5"].item()), abs=1e-9)


def test_a_decoded_set_is_classified_as_its_images_are_one_by_one(world_folder: Path) -> None:
    torch.manual_seed(0)
    model = build_model(torch.jit.load(world_folder / "ViT-tiny.pt").state_dict())
    test = load_decoded("DTD", world_folder / "data", 32, 16, 0, verify=False)
    data = datasets.load("DTD", world_folder / "data", None, clip_eval(32), verify=False).test
    with torch.no_grad():
        features = torch.cat([model.encode_image(image[None]) for image, _ in data])
        logits = zeroshot_logits(features, class_vectors(model, test.tokens))
    assert tuple(evaluate(model, test, 16).values()) == accuracy(logits, torch.tensor(data.labels))


@pytest.mark.parametrize("name", ["order1", "order2", "small"])
def test_metrics(name: str) -> None:
    triple = mtil_triple(METRICS[f"{name}_matrix"].numpy())
    for key in ("transfer", "avg", "last"):
        expected = METRICS[f"{name}_{key}"].numpy()
        np.testing.assert_allclose(getattr(triple, f"{key}_per_dataset"), expected, rtol=0, atol=1e-9)
    summary = (triple.transfer, triple.avg, triple.last)
    np.testing.assert_allclose(summary, METRICS[f"{name}_summary"].numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", range(len(SCHEDULE.meta["cases"])))
def test_schedule(case: int) -> None:
    options, expected = SCHEDULE.meta["cases"][case], SCHEDULE[f"lr{case}"].numpy()
    rates = [cosine_with_warmup(step, **options) for step in range(options["total"] + 1)]
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-12)
