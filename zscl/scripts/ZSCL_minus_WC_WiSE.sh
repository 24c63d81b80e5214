#!/usr/bin/env bash
# ZSCL- with weight consolidation and WiSE-FT after each task; as upstream, its sentences are captions. From the
# repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss --l2 1 \
  --wise_merge --wise_ft_alpha 0.8 --ref-dataset ImageNet --ref-sentences conceptual_captions \
  --save "ckpt/ZSCL_minus_WC_WiSE_$ORDER" "$@"
