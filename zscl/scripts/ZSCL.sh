#!/usr/bin/env bash
# ZSCL: distillation from CLIP on ImageNet images and all Conceptual Captions, weight ensemble, weight consolidation.
# From the repository root; the order, 1 or 2, may come first:
#   bash zscl/scripts/ZSCL.sh 1 --data-location /data
#   bash zscl/scripts/ZSCL.sh 2 --scale mini
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss --we --avg_freq 100 \
  --l2 1 --ref-dataset ImageNet --ref-sentences conceptual_captions \
  --save "ckpt/ZSCL_$ORDER" "$@"
