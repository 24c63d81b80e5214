#!/usr/bin/env bash
# IT-Prompt (our reading) on TinyImageNet, 100 classes, then 5 tasks of 20, seeds 0 to 4.
# 10 tasks: --set other_split_size=10 --log_dir output/tinyimagenet/100+10x10/NAME; 20 likewise.
# From the repository root; --scale mini runs it on the miniature. NAME: ITPromptCNCM, ITPrompt, or a bound without
# prompts, ZeroShot or NCM.
set -euo pipefail
NAME="${NAME:-ITPromptCNCM}"
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/tinyimagenet_it_prompt.yaml --gpuid 0 --repeat 5 \
    --overwrite 0 --learner_type it_prompt --learner_name "$NAME" --seeds 0 1 2 3 4 \
    --log_dir "${OUT:-output}/tinyimagenet/100+5x20/$NAME" "$@"
