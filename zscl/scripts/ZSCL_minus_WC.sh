#!/usr/bin/env bash
# ZSCL- with weight consolidation. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss --l2 1 \
  --ref-dataset ImageNet --ref-sentences ImageNet \
  --save "ckpt/ZSCL_minus_WC_$ORDER" "$@"
