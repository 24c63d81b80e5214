#!/usr/bin/env bash
# Ablation of the losses, on ImageNet images and prompts with CLIP as teacher: both losses, or those given as flags.
#   bash zscl/scripts/table_a.sh 1 --image_loss --save ckpt/table_a_image
#   bash zscl/scripts/table_a.sh 1 --text_loss --save ckpt/table_a_text
#   bash zscl/scripts/table_a.sh 1 --feature_mse --save ckpt/table_a_mse
#   bash zscl/scripts/table_a.sh 1 --image_loss --text_loss --ablation_loss_2 --save ckpt/table_a_three
# The teacher: --ref-model previous, or --ref-wise. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
case " $* " in
  *image[_-]loss* | *text[_-]loss* | *ablation[_-]loss[_-]2* | *feature[_-]mse*) LOSSES= ;;
  *) LOSSES="--image_loss --text_loss" ;;
esac
exec "${PYTHON:-python}" -m zscl.main "${SEQUENCE[@]}" --method ZSCL $LOSSES \
  --ref-dataset ImageNet --ref-sentences ImageNet \
  --save "ckpt/table_a_$ORDER" "$@"
