#!/usr/bin/env bash
# ZSCL-: the distillation alone, on ImageNet images and the prompts of its classes. From the repository root; the order
# may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss \
  --ref-dataset ImageNet --ref-sentences ImageNet \
  --save "ckpt/ZSCL_minus_$ORDER" "$@"
