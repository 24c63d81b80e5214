#!/usr/bin/env bash
# WiSE-FT: after each task 0.8 of its weights and 0.2 of those before it. From the repository root; the order may come
# first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method finetune \
  --wise_merge --wise_ft_model n --wise_ft_alpha 0.8 \
  --save "ckpt/WiSE_finetune_$ORDER" "$@"
