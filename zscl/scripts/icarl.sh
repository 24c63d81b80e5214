#!/usr/bin/env bash
# iCaRL: distillation from CLIP on exemplars of the tasks before; the rates, 5e-5 for Aircraft and MNIST and 1e-5 for the
# others, are set in the code, as upstream. The flags of the published run are not public: the script upstream is a smoke
# test of five iterations without a loss flag. It has no --ls, nor has this one; add --ls 0.2 to try the label smoothing of
# the other methods, and compare first rows. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main --train-mode=whole "${PROTOCOL[@]}" --method icarl --dataset_order="$ORDER" \
  --iterations "$STEPS" --image_loss --text_loss --memory_size 10000 \
  --save "ckpt/icarl_$ORDER" "$@"
