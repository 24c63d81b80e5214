"""Made-up data and a tiny CLIP archive on disk, and the command lines that run IT-Prompt on them in seconds."""

import json

from vq_prompt.run import main

LAYERS = "prompt_layers=[0,1,2,3]"  # the tiny CLIP has four blocks
CUT = {"first_split_size": 50, "other_split_size": 50, "epochs": 1, "batch_size": 64, "workers": 0}


def command(world, out, config, learner, *flags, **changes):
    """The flags of `python -m vq_prompt.run` for a configuration cut to two tasks and one epoch."""
    values = CUT | {"dataroot": world / "data", "clip_weights": world / "clip.pt"} | changes
    return [
        "--learner_type", "it_prompt", "--learner_name", learner, "--config", f"configs/{config}_it_prompt.yaml",
        "--gpuid", "-1", "--no-verify", "--log_dir", str(out), *flags,
        "--set", LAYERS, *(f"{key}={json.dumps(value, default=str)}" for key, value in values.items()),
    ]  # fmt: skip


def run(world, out, config, learner, *flags, **changes):
    """Run it; gives the folder of the first repeat."""
    main(command(world, out, config, learner, *flags, **changes))
    places = (out / "repeat-1", out.with_name(f"{out.name}-mini") / "repeat-1")
    return next(folder for folder in places if folder.exists())


def lines(folder):
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def values(folder, metric):
    """The values of a metric by (after_task, dataset)."""
    return {(line["after_task"], line["dataset"]): line["value"] for line in lines(folder) if line["metric"] == metric}
