#!/usr/bin/env bash
# Fine-tuning with weight consolidation. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method finetune --l2 1 \
  --save "ckpt/wc_$ORDER" "$@"
