#!/usr/bin/env bash
# VQ-Prompt on CIFAR-100, 10 tasks of 10 classes, seeds 0 to 4.
# From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/cifar-100_prompt_vq.yaml --gpuid 0 --repeat 5 \
    --overwrite 0 --learner_type prompt --learner_name VQPrompt --prompt_param 10 8 1 --seeds 0 1 2 3 4 \
    --log_dir outputs/cifar-100/10-task/vq-prompt "$@"
