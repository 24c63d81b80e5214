#!/usr/bin/env bash
# LwF-VR: LwF on 1000 random sentences. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss \
  --ref-dataset current --ref-model previous --ref-sentences random \
  --save "ckpt/lwf_vr_$ORDER" "$@"
