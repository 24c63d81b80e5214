#!/usr/bin/env bash
# VQ-Prompt on ImageNet-R in 10 tasks, on self-supervised ViTs: Table 4's two, and two more; seeds 0 to 2.
# From the repository root; OUT is the folder that the log folders lie in.
set -euo pipefail
for weights in ${BACKBONES:-ibot1k dino1k ibot21k moco1k}; do
    "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/imnet-r_prompt_vq.yaml --gpuid 0 --repeat 3 \
        --learner_type prompt --learner_name VQPrompt --prompt_param 10 8 1 --seeds 0 1 2 \
        --pretrained_weight "$weights" --log_dir "${OUT:-outputs}/ImageNet_R/10-task/vq-prompt-$weights" "$@"
done
