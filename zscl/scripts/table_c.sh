#!/usr/bin/env bash
# Ablation of the reference images, with ImageNet prompts and CLIP as teacher: those of the current task, or of a flag.
#   bash zscl/scripts/table_c.sh 1 --ref-dataset ImageNetSM --num 100 --save ckpt/table_c_100_classes
#   bash zscl/scripts/table_c.sh 1 --ref-dataset ImageNetSUB --num 100000 --save ckpt/table_c_100k
#   bash zscl/scripts/table_c.sh 1 --ref-dataset conceptual_captions --save ckpt/table_c_captions
# From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss \
  --ref-dataset current --ref-sentences ImageNet \
  --save "ckpt/table_c_$ORDER" "$@"
