#!/usr/bin/env bash
# Continual fine-tuning. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method finetune \
  --save "ckpt/finetune_$ORDER" "$@"
