"""The eight sister methods, and TinyImageNet: whole runs held against the same runs written out as plain steps."""

import pytest
import torch
import torch.nn.functional as F

from common.clip.tokenizer import tokenize
from tests.alta.pictures import classnames
from tests.alta.plain import Numbers, Plain, accuracies
from tests.alta.whole import (
    check_batches,
    check_checkpoints,
    check_crops,
    check_printed,
    check_records,
    check_steps,
    check_tests,
    frozen_clip,
    plain_twin,
    whole_run,
)
from tests.whole_run import float64

ADAPTER = [f"mlp_visual.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
# label in records, where names stand, words to begin with (none: drawn), how many words are drawn, one context a class
METHODS = {
    "mlp": ("Adapter", "end", "", 4, False),
    "resmlp": ("Residual adapter", "end", "", 4, False),
    "sprompt": ("Shared prompt", "front", "", 2, False),
    "cprompt": ("Task prompts", "middle", "", 3, True),
    "cprompt_oriprompt": ("Task prompts + hard prompts", "middle", "one picture of", 4, False),
    "cprompt_mlp": ("Task prompts x adapter", "middle", "one blurry photo of a", 4, False),
    "cprompt_resmlp": ("Task prompts x residual adapter", "end", "", 5, False),
    "oriclip2cprompt_mlp": ("CLIP + task prompts x adapter", "front", "one picture of", 4, False),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_other_method(place, method):
    """Two tasks of five classes of CIFAR-10. Methods without an adapter never replay, whatever is configured."""
    label, position, context, words, per_class = METHODS[method]
    has_context, has_adapter = "prompt" in method, "mlp" in method
    told = Numbers(
        method, [[0.03]] * 2, {"momentum": 0.8, "weight_decay": 0.02, "dampening": 0.1}, 5, context, words, position,
        alpha=0.7, beta=0.3, buffer_size=9 if has_adapter else 0, replay_size=6, seed=7,
    )  # fmt: skip
    changes = {
        "OPTIM": {"LR": 0.03, "MAX_EPOCH": 1}, "train": {"batch_size": 6},
        "COOP": {"CTX_INIT": context, "N_CTX": words, "CLASS_TOKEN_POSITION": position, "CSC": per_class},
    }  # fmt: skip
    flags = ["--method", method, "--lr_policy", "constant", "--buffer_size", "9", "--seed", "7"]
    with float64():
        run = whole_run(place, "cifar10", (2, 5), *flags, **changes)
        plain = plain_twin(run, place, told)
    start = run.seen.steps[0].start[0]
    if has_context and not context:
        assert start[0].shape == ((10, words, 32) if per_class else (words, 32))
        assert 0.01 < float(start[0].std()) < 0.03
    check_batches(run, told, size=6)
    check_steps(run, plain, told)
    within = "prompt_learner." if has_context else ""
    check_checkpoints(
        run, plain, ["prompt_learner.ctx"] * has_context + [within + key for key in ADAPTER] * has_adapter
    )
    split = "cifar10-2x5-buffer9" if has_adapter else "cifar10-2x5"
    check_records(run, plain, (f"cil-{split}", f"til-{split}"), "CIFAR10")
    check_printed(run, plain, setting=0, epochs=1)
    assert {line["method"] for line in run.records()} == {f"{label}, constant"}
    assert ("trains prompts alone and does not replay" in run.printed) == (not has_adapter)


def test_zero_shot_clip(place):
    """Ours: cos(v, w) of the hard prompts "a photo of a {c}"; nothing is trained."""
    with float64(), torch.no_grad():
        run = whole_run(place, "cifar10", (2, 5), "--method", "zeroshot", "--il_setting", "task-il")
        clip, told = frozen_clip(place.clip), Numbers("zeroshot", [[], []], {}, 5)
        texts = clip.encode_text(tokenize([f"a photo of a {name}" for name in classnames("cifar10")], 20), cut=False)
        tests, plain = run.whole_tests(2, 5), Plain(trained=[[]])
        for task in (0, 1):
            images, labels = (torch.cat(part) for part in zip(*tests[: task + 1]))
            v = clip.encode_image(images)
            logits = F.normalize(v, dim=1) @ F.normalize(texts, dim=1).t()
            plain.accuracies[task, 0] = accuracies(logits, labels, task, told)
    check_tests(run, told, size=5)
    check_records(run, plain, ("cil-cifar10-2x5", "til-cifar10-2x5"), "CIFAR10")
    check_printed(run, plain, setting=1, epochs=1)
    assert not run.seen.steps and {line["method"] for line in run.records()} == {"Zero-shot CLIP, hard prompts"}


def test_tinyimagenet(place):
    """Labels by the lines of wnids.txt, of two names the first, validation images for testing; mirrored."""
    told = Numbers(
        "mlp", [[0.03] * 3] * 2, {"momentum": 0.8, "weight_decay": 0.02, "dampening": 0.1}, 100, alpha=0.7, beta=0.3,
        buffer_size=30, replay_size=20, seed=9, test_epochs=2,
    )  # fmt: skip
    flags = ["--method", "mlp", "--lr_policy", "constant", "--buffer_size", "30", "--seed", "9"]
    changes = {"OPTIM": {"LR": 0.03}, "train": {"batch_size": 20}, "eval": {"batch_size": 7}}
    with float64():
        run = whole_run(place, "tiny", (2, 100), *flags, **changes)
        plain = plain_twin(run, place, told)
    check_batches(run, told, size=20)
    check_crops(run, is_mirrored=True)
    check_steps(run, plain, told)
    check_checkpoints(run, plain, ADAPTER)
    check_tests(run, told, size=7)
    check_records(run, plain, ("cil-tinyimagenet-2x100-buffer30", "til-tinyimagenet-2x100-buffer30"), "TinyImageNet")
    check_printed(run, plain, setting=0, epochs=3)
