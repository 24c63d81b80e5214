#!/usr/bin/env bash
# ZSCL*: ZSCL without weight consolidation. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss --we --avg_freq 100 \
  --ref-dataset ImageNet --ref-sentences conceptual_captions \
  --save "ckpt/ZSCL_stars_$ORDER" "$@"
