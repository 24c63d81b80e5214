#!/usr/bin/env bash
# LwF: distillation from the model before the task on the images and class prompts of the task. From the repository
# root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL --image_loss --text_loss \
  --ref-dataset current --ref-model previous \
  --save "ckpt/lwf_$ORDER" "$@"
