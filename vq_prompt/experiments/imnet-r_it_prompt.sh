#!/usr/bin/env bash
# IT-Prompt (our reading) on ImageNet-R, 10 tasks of 20 classes, seeds 0 to 4.
# From the repository root; --scale mini runs it on the miniature. NAME: ITPromptCNCM, ITPrompt, or a bound without
# prompts, ZeroShot or NCM.
set -euo pipefail
NAME="${NAME:-ITPromptCNCM}"
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/imnet-r_it_prompt.yaml --gpuid 0 --repeat 5 \
    --overwrite 0 --learner_type it_prompt --learner_name "$NAME" --seeds 0 1 2 3 4 \
    --log_dir "${OUT:-output}/imagenet-r/10x20/$NAME" "$@"
