"""The method of docs/adding-a-method.md, killed and taken up, against linear discriminant analysis written out."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.clip.pretrained import load
from common.incremental.scenario import read_class_order
from common.incremental.sets import load_incremental
from docs.slda import main
from tests.forked import start


def test_killed_and_taken_up_it_is_linear_discriminant_analysis(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [
        "--scale",
        "mini",
        "--increment",
        "20",
        "--shrinkage",
        "0.1",
        "--workers",
        "0",
        "--save",
        str(tmp_path / "run"),
    ]
    process, output = start(main, words)
    next(line for line in output if line.startswith("task 0: accuracy"))
    process.kill()
    process.join()
    main(words)
    assert "task 0:" not in capsys.readouterr().out

    clip, _, transform = load("mini")
    data = load_incremental("cifar100", "mini", transform, transform)
    positions = np.argsort(read_class_order("class_orders/mini.yaml"))
    sides = []
    for images in (data.train, data.test):
        with torch.no_grad():
            features = [clip.encode_image(batch).double() for batch, _ in DataLoader(images, 128)]
        sides.append((torch.cat(features).numpy(), positions[np.asarray(images.labels)]))
    with open(tmp_path / "run-mini" / "accuracy.csv") as file:
        recorded = [[float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    for task, row in enumerate(recorded):
        assert np.allclose(row[: task + 1], task_accuracies(*sides, 20 * (task + 1)), rtol=0, atol=1e-9)
        assert np.isnan(row[task + 1 :]).all()


def task_accuracies(training: tuple, test: tuple, seen: int) -> list[float]:
    """Percent of each task's test images, by the classifier of the first `seen` classes."""
    features, labels = training[0][training[1] < seen], training[1][training[1] < seen]
    means = np.stack([features[labels == label].mean(axis=0) for label in range(seen)])
    centred = features - means[labels]
    covariance = centred.T @ centred / len(centred)
    precision = np.linalg.inv(0.9 * covariance + 0.1 * np.eye(len(covariance)))
    scores = test[0] @ precision @ means.T - np.diag(means @ precision @ means.T) / 2
    right = scores.argmax(axis=1) == test[1]
    return [100 * right[test[1] // 20 == task].mean() for task in range(seen // 20)]
