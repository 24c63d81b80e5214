#!/usr/bin/env bash
# VQ-Prompt on ImageNet-R in 5, 10 and 20 tasks, seeds 0 to 4.
# From the repository root; OUT and NAME make the three log folders: --log_dir would give them one.
set -euo pipefail
OUT="${OUT:-outputs}/ImageNet_R" NAME="${NAME:-vq-prompt}"
run() {
    "${PYTHON:-python}" -u -m vq_prompt.run --gpuid 0 --repeat 5 --overwrite 0 --learner_type prompt \
        --learner_name VQPrompt --prompt_param 10 8 1 --seeds 0 1 2 3 4 "$@"
}
run --config vq_prompt/configs/imnet-r_prompt_short_vq.yaml --log_dir "$OUT/5-task/$NAME" "$@"
run --config vq_prompt/configs/imnet-r_prompt_vq.yaml --log_dir "$OUT/10-task/$NAME" "$@"
run --config vq_prompt/configs/imnet-r_prompt_long_vq.yaml --log_dir "$OUT/20-task/$NAME" "$@"
