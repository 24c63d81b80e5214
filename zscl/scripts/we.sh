#!/usr/bin/env bash
# Fine-tuning with the weight ensemble. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method finetune --we --avg_freq 100 \
  --save "ckpt/we_$ORDER" "$@"
