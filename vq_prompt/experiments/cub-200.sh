#!/usr/bin/env bash
# VQ-Prompt on CUB-200, 10 tasks of 20 classes, on the ViT of ImageNet-21k alone, seeds 0, 12, 24, 36, 48.
# From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/cub-200_prompt_vq.yaml --gpuid 0 --repeat 5 \
    --overwrite 0 --learner_type prompt --learner_name VQPrompt --prompt_param 10 8 5 --ca_batch_size_ratio 2 \
    --seeds 0 12 24 36 48 --pretrained_weigh sup21k --log_dir outputs/cub-200/10-task/vq-prompt "$@"
