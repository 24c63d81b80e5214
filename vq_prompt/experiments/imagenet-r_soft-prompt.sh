#!/usr/bin/env bash
# Soft-Prompt, the mixture of all prompts itself (Figure 3a), on ImageNet-R in 10 tasks; --prompt_param sets tau.
# From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/imnet-r_prompt_vq.yaml --gpuid 0 --repeat 5 \
    --learner_type prompt --learner_name VQPrompt --prompt_param 10 8 1 --seeds 0 1 2 3 4 --adaptive_pred \
    --set quantize=false --log_dir outputs/ImageNet_R/10-task/soft-prompt "$@"
