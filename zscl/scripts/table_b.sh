#!/usr/bin/env bash
# Ablation of the reference sentences, on ImageNet images with CLIP as teacher: captions, or those that a flag names.
#   bash zscl/scripts/table_b.sh 1 --ref-sentences ImageNet --save ckpt/table_b_imagenet
#   bash zscl/scripts/table_b.sh 1 --ref-sentences random --save ckpt/table_b_random
#   bash zscl/scripts/table_b.sh 1 --ref-sentences current --save ckpt/table_b_current
#   bash zscl/scripts/table_b.sh 1 --text-datasets seen --save ckpt/table_b_seen
# From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss \
  --ref-dataset ImageNet --ref-sentences conceptual_captions \
  --save "ckpt/table_b_$ORDER" "$@"
