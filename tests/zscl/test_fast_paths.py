"""Every fast path against the plain one that it stands for, on the fixtures' models and batches."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP, build_model
from common.clip.tokenizer import cut_prompts
from tests.golden_files import Golden
from tests.zscl.trajectory import (
    RecordedBatches,
    Trajectory,
    assert_fingerprints,
    assert_gradients,
    assert_losses,
    assert_weights,
    fingerprints,
    options_of,
    weights_under,
)
from zscl.teacher import SENTENCES_AT_ONCE, FeatureCache, Reference, sentence_features

GOLDEN = Golden("zscl_mtil/traj_zscl")


class EncodedAtEachStep:
    """The plain reference: the teacher encodes all sentences and the batch's images at every step, as upstream."""

    def __init__(self, teacher: CLIP, batches: RecordedBatches, tokens: Tensor) -> None:
        self.teacher, self.batches, self.tokens, self.cache = teacher, batches, tokens, FeatureCache()
        self.sentences_encoded = self.images_encoded = 0

    @torch.no_grad()
    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        self.images_encoded += 1
        self.sentences_encoded += 1
        sentences = F.normalize(self.teacher.encode_text(self.tokens, cut=False), dim=-1)
        images, _ = self.batches[step]
        return images, F.normalize(self.teacher.encode_image(images), dim=-1), sentences


def run(reference: Reference | EncodedAtEachStep, tokens: Tensor) -> Trajectory:
    batches = RecordedBatches(GOLDEN["x_train"], GOLDEN["y_train"], GOLDEN["idx_train"].tolist())
    trajectory = Trajectory(weights_under(GOLDEN, "w0/"), GOLDEN.meta["names"])
    return trajectory.run(tokens, batches, reference, None, options_of(GOLDEN.meta["argv"]))


def in_epochs(images: int, batch_size: int, steps: int) -> list[list[int]]:
    """Shuffled batches that have seen every image before the first comes again."""
    generator, drawn = torch.Generator().manual_seed(0), []
    while len(drawn) < steps:
        drawn += [part.tolist() for part in torch.randperm(images, generator=generator).split(batch_size)]
    return drawn


@pytest.mark.parametrize("images", [8, 14])
def test_teacher_features_computed_once_give_the_run_of_those_computed_at_each_step(images: int) -> None:
    teacher, tokens = build_model(weights_under(GOLDEN, "clip/")), GOLDEN["ref_tokens"].long()
    stream = RecordedBatches(GOLDEN["x_ref"][:images], None, in_epochs(images, 4, GOLDEN.meta["steps"]))
    plain = EncodedAtEachStep(teacher, stream, tokens)
    expected = run(plain, GOLDEN["prompt_tokens"])
    assert plain.sentences_encoded >= GOLDEN.meta["steps"] == plain.images_encoded
    known = FeatureCache()
    once = run(Reference(teacher, stream, tokens, sentence_features(teacher, tokens), known), GOLDEN["prompt_tokens"])
    assert len(known.features) == images < 4 * GOLDEN.meta["steps"]  # most were asked for more than once
    trained = [name for name in GOLDEN.meta["names"] if name != "logit_scale"]
    for term in ("CE", "img", "txt", "WC"):
        assert_losses(once.losses(term), expected.losses(term))
    assert_fingerprints(once.gradients[:1], trained, fingerprints(expected.gradients[0], trained)[None])
    # AdamW makes a step of its own size out of a gradient that is rounding noise: the fixtures' rule for weights
    differences = torch.cat([(once.saved[name] - expected.saved[name]).abs().flatten() for name in expected.saved])
    lr = float(GOLDEN.meta["argv"][GOLDEN.meta["argv"].index("--lr") + 1])
    assert differences.max() <= 2 * lr and (differences <= 1e-5).float().mean() >= 0.999


def test_sentences_in_parts_and_cut_have_the_features_of_all_at_full_length() -> None:
    teacher = build_model(weights_under(GOLDEN, "clip/"))
    tokens = GOLDEN["ref_tokens"].long()
    tokens = tokens.repeat(SENTENCES_AT_ONCE // len(tokens) + 2, 1)
    assert len(tokens) > SENTENCES_AT_ONCE
    with torch.no_grad():
        plain = F.normalize(teacher.encode_text(tokens, cut=False), dim=-1)
    torch.testing.assert_close(sentence_features(teacher, tokens), plain, rtol=0, atol=1e-6)


def test_cut_prompts_give_the_recorded_trajectory_of_full_ones() -> None:
    tokens = cut_prompts(GOLDEN["prompt_tokens"].long())
    assert tokens.shape[1] < GOLDEN["prompt_tokens"].shape[1] == 77
    teacher = build_model(weights_under(GOLDEN, "clip/"))
    drawn = RecordedBatches(GOLDEN["x_ref"], None, GOLDEN["idx_ref"].tolist())
    sentences = GOLDEN["ref_tokens"].long()
    reference = Reference(teacher, drawn, sentences, sentence_features(teacher, sentences), FeatureCache())
    done = run(reference, tokens)
    assert_losses(done.losses("CE"), GOLDEN["ce"])
    assert_gradients(done.gradients[0], GOLDEN.under("grad0/"))
    assert_fingerprints(done.weights, GOLDEN.meta["names"], GOLDEN["param_fp"])
    assert_weights(done.weights[-1], GOLDEN.under("param_last/"))
