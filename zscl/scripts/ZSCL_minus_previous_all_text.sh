#!/usr/bin/env bash
# ZSCL- whose sentences are the class prompts of all tasks learnt so far, the current one included. MNIST is learnt at
# 1e-5 here, as upstream. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --lr="$SLOW_MNIST_RATES" --method ZSCL \
  --image_loss --text_loss --ref-dataset ImageNet --text-datasets seen \
  --save "ckpt/ZSCL_minus_previous_all_text_$ORDER" "$@"
