"""The training loop against trajectories of the official code: losses, gradients, weights, what is saved."""

from typing import Any

import pytest
import torch

from tests.golden_files import Golden
from tests.whole_run import float64
from tests.zscl.trajectory import (
    RecordedBatches,
    Trajectory,
    assert_fingerprints,
    assert_gradients,
    assert_losses,
    assert_weights,
    options_of,
    reference_of,
    weights_under,
)
from zscl.weights import interpolate_

RUNS = ["finetune", "zscl", "zscl_minus", "lwf", "lwf_vr", "wiseft", "wc"]


def clip_weights(golden: Golden) -> dict[str, torch.Tensor]:
    """The pre-trained weights, where they are not the ones the run starts from."""
    return weights_under(golden, "clip/") or weights_under(golden, "w0/")


def run(golden: Golden, prefix: str = "", argv: list[str] | None = None, **changes: object) -> Trajectory:
    batches = RecordedBatches(golden["x_train"], golden["y_train"], golden[f"{prefix}idx_train"].tolist())
    argv = argv or golden.meta["argv"]
    reference = None
    if f"{prefix}idx_ref" in golden:
        drawn = RecordedBatches(golden["x_ref"], None, golden[f"{prefix}idx_ref"].tolist())
        teacher = weights_under(golden, "w0/") if golden.meta["refset"] == "TinyB" else clip_weights(golden)
        if "--ref-wise" in argv:
            teacher = weights_under(golden, "w0/")
            interpolate_(teacher, clip_weights(golden), float(argv[argv.index("--ref_wise_alpha") + 1]))
        reference = reference_of(teacher, drawn, golden["ref_tokens"])
    trajectory = Trajectory(weights_under(golden, "w0/"), golden.meta["names"])
    return trajectory.run(
        golden["prompt_tokens"], batches, reference, clip_weights(golden), options_of(argv, **changes)
    )


def run_exactly(*arguments: Any, **changes: object) -> Trajectory:
    """`run` in float64: single weights, in which AdamW blows up the rounding that differs between processors."""
    with float64():
        return run(*arguments, **changes)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("name", RUNS)
def test_trajectory(name: str, joint: bool) -> None:
    golden = Golden(f"zscl_mtil/traj_{name}")
    done = run(golden, joint_pass=joint)
    assert len(done.weights) == golden.meta["steps"]  # iterations + 1
    assert_losses(done.losses("CE"), golden["ce"])
    for place, term in enumerate(("img", "txt")):
        if term in done.terms[0]:
            assert_losses(done.losses(term), golden["kd_terms"][:, place])
    if "WC" in done.terms[0]:
        assert_losses(done.losses("WC"), golden["l2"])
    assert_losses(torch.stack([sum(terms.values()) for terms in done.terms]), golden["total"])
    scale_gradients = torch.stack([gradients["logit_scale"] for gradients in done.gradients])
    assert_losses(scale_gradients, golden["logit_scale_grad"])
    for step in (0, 1):
        assert_gradients(done.gradients[step], golden.under(f"grad{step}/"))
    assert_fingerprints(done.gradients, golden.meta["grad_names"], golden["grad_fp"])
    exact = run_exactly(golden, joint_pass=joint)
    assert_weights(exact.weights[0], golden.under("param1/"))
    assert_weights(exact.weights[-1], golden.under("param_last/"))
    assert_fingerprints(done.weights, golden.meta["names"], golden["param_fp"])
    assert_fingerprints([done.saved], golden.meta["names"], golden["saved_fp"][None])


def test_zscl_saves_the_ensemble_whole() -> None:
    golden = Golden("zscl_mtil/traj_zscl")
    done, lr = run(golden), 5e-4
    samples = [done.averages[step] for step in (0, 2, 4, 6)]
    assert_fingerprints(samples, golden.meta["names"], golden["avg_fp"])
    saved = golden.under("saved/")
    assert set(saved) == set(done.saved)
    apart = torch.cat([(done.saved[name] - value).abs().flatten() for name, value in saved.items()])
    assert (apart <= 1e-5).float().mean() >= 0.999 and apart.max() <= 2 * lr


def test_wise_ft_merges_with_theta0_or_with_clip() -> None:
    golden = Golden("zscl_mtil/traj_wiseft")
    assert_weights(run_exactly(golden).saved, golden.under("saved/"))
    zeroshot = run_exactly(golden, "zeroshot_", golden.meta["zeroshot_variant"])
    assert_fingerprints([zeroshot.saved], golden.meta["names"], golden["zeroshot_saved_fp"][None])
    assert_weights(zeroshot.saved, golden.under("zeroshot_saved/"))


@pytest.mark.parametrize("name", Golden("zscl_mtil/traj_weight_options").meta["runs"])
def test_weight_options(name: str) -> None:
    golden = Golden("zscl_mtil/traj_weight_options")
    done = run(golden, f"{name}/", golden.meta["runs"][name])
    events = (0, 2, 4, 6)
    names = golden.meta["names"]
    assert_losses(done.losses("CE"), golden[f"{name}/ce"])
    assert_fingerprints([done.saved], names, golden[f"{name}/saved_fp"][None])
    exact = run_exactly(golden, f"{name}/", golden.meta["runs"][name])
    assert_weights(exact.saved, golden.under(f"{name}/saved/"))
    pulled = name.startswith("mv_")  # the pulled student is what an event leaves behind
    averages = [(done.weights if pulled else done.averages)[step] for step in events]
    assert_fingerprints(averages, names, golden[f"{name}/avg_fp"])
    between = [step for step in range(7) if not (pulled and step in events)]
    assert_fingerprints([done.weights[step] for step in between], names, golden[f"{name}/param_fp"][between])


@pytest.mark.parametrize(
    "name", [name for name in Golden("zscl_mtil/traj_loss_options").meta["runs"] if not name.endswith("_names")]
)
def test_loss_options(name: str) -> None:
    golden = Golden("zscl_mtil/traj_loss_options")
    done = run(golden, f"{name}/", golden.meta["runs"][name])
    assert_losses(done.losses("CE"), golden[f"{name}/ce"])
    for term, place in (("img", 0), ("txt", 1), ("ii", -1)):
        if term in done.terms[0]:
            assert_losses(done.losses(term), golden[f"{name}/kd_terms"][:, place])
    names = golden.meta["names"]
    trained = [key for key in names if key != "logit_scale"]
    assert_fingerprints(
        done.gradients, golden.meta["grad_names"] if name == "image_mode" else trained, golden[f"{name}/grad_fp"]
    )
    weight = 0.5 if name == "half" else 1.0
    totals = [sum(loss * (weight if key in ("img", "txt", "ii") else 1) for key, loss in t.items()) for t in done.terms]
    assert_losses(torch.stack(totals), golden[f"{name}/total"])
    assert_fingerprints(done.weights, names, golden[f"{name}/param_fp"])
    exact = run_exactly(golden, f"{name}/", golden.meta["runs"][name])
    assert_weights(exact.weights[-1], golden.under(f"{name}/param_last/"))


def test_text_mode_trains_the_text_encoder_alone_and_image_mode_the_image_encoder() -> None:
    golden = Golden("zscl_mtil/traj_finetune")
    for mode in ("text", "image"):
        done = run(golden, train_mode=mode)
        moved = {name for name, value in done.saved.items() if not torch.equal(value, golden[f"w0/{name}"].float())}
        assert moved and all(name.startswith("visual.") == (mode == "image") for name in moved)
        assert "logit_scale" not in moved


def test_a_joint_pass_gives_the_gradients_of_two_separate_ones() -> None:
    golden = Golden("zscl_mtil/traj_zscl")
    joint, separate = run(golden, joint_pass=True), run(golden, joint_pass=False)
    for name, gradient in joint.gradients[0].items():
        torch.testing.assert_close(separate.gradients[0][name], gradient, rtol=1e-5, atol=1e-6)
