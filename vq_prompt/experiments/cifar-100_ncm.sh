#!/usr/bin/env bash
# The nearest class mean on the ViT without prompts, nothing trained: what prompts have to beat. CIFAR-100, 10 tasks.
# From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/cifar-100_prompt_vq.yaml --gpuid 0 --repeat 5 \
    --learner_type prompt --learner_name NCM --seeds 0 1 2 3 4 --log_dir outputs/cifar-100/10-task/ncm "$@"
