#!/usr/bin/env bash
# A method under X-TAIL: ten data sets, 16 images a class, every test image among the classes of all ten. Named first is
# the method's script, whose flags on MTIL are kept: finetune, lwf, icarl, lwf_vr, WiSE_finetune, ZSCL, any other, or
# zero_shot, which only prints CLIP's accuracies. From the repository root:
#   bash zscl/scripts/xtail.sh ZSCL --data-location /data
#   bash zscl/scripts/xtail.sh ZSCL --scale mini
set -euo pipefail
NAME=${1:?"name a method: bash zscl/scripts/xtail.sh ZSCL"}
NAME=${NAME%.sh}
SCRIPT=$(dirname "$0")/$NAME.sh
if [[ $NAME =~ ^(order|first_row|xtail)$ ]] || [ ! -f "$SCRIPT" ]; then
  echo "error: $NAME is no method's script. Name one first, as in: bash zscl/scripts/xtail.sh ZSCL" >&2 && exit 2
fi
exec bash "$SCRIPT" xtail "${@:2}"
