#!/usr/bin/env bash
# IT-Prompt (our reading) on CIFAR-100, 10 tasks of 10 classes, seeds 0 to 4.
# 20 tasks: --set first_split_size=5 other_split_size=5 --log_dir output/cifar-100/20x5/NAME; 50 likewise.
# From the repository root; --scale mini runs it on the miniature. NAME: ITPromptCNCM, ITPrompt, or a bound without
# prompts, ZeroShot or NCM.
set -euo pipefail
NAME="${NAME:-ITPromptCNCM}"
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/cifar-100_it_prompt.yaml --gpuid 0 --repeat 5 \
    --overwrite 0 --learner_type it_prompt --learner_name "$NAME" --seeds 0 1 2 3 4 \
    --log_dir "${OUT:-output}/cifar-100/10x10/$NAME" "$@"
