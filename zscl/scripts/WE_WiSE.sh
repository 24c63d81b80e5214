#!/usr/bin/env bash
# Fine-tuning with a weight ensemble that is pulled to the weights before the task. MNIST is learnt at 1e-5 here, as
# upstream, whose script has CIFAR10 as a twelfth task besides. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --lr="$SLOW_MNIST_RATES" --method finetune \
  --we_wise --we_wise_alpha 0.99 --avg_freq 100 \
  --save "ckpt/WE_WiSE_$ORDER" "$@"
