#!/usr/bin/env bash
# VQ-Prompt on ImageNet-R in 5, 10 or 20 tasks, the first argument; seeds 0 to 4.
# From the repository root; OUT and NAME make the log folder, where no --log_dir is given.
set -euo pipefail
TASKS="${1:?how many tasks: 5, 10 or 20}" && shift
case "$TASKS" in
    5) CONFIG=imnet-r_prompt_short_vq ;;
    10) CONFIG=imnet-r_prompt_vq ;;
    20) CONFIG=imnet-r_prompt_long_vq ;;
    *) echo "error: ImageNet-R in $TASKS tasks: say 5, 10 or 20." >&2 && exit 2 ;;
esac
exec "${PYTHON:-python}" -u -m vq_prompt.run --gpuid 0 --repeat 5 --overwrite 0 --learner_type prompt \
    --learner_name VQPrompt --prompt_param 10 8 1 --seeds 0 1 2 3 4 --config "vq_prompt/configs/$CONFIG.yaml" \
    --log_dir "${OUT:-outputs}/ImageNet_R/$TASKS-task/${NAME:-vq-prompt}" "$@"
