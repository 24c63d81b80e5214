#!/usr/bin/env bash
# One class-incremental run by the name of its configuration, cifar100_10-10-ZSCL.yaml unless another comes first. From
# the repository root:
#   bash zscl/scripts/cil/run_experiment.sh tinyimagenet_100-5-ZSCL.yaml dataset_root=/data
#   bash zscl/scripts/cil/run_experiment.sh --scale mini
# The class order is that of the configuration's data set, the part of its name before the first "_".
set -euo pipefail
CONFIG=cifar100_10-10-ZSCL.yaml
case "${1:-}" in
  *.yaml) CONFIG=$1 && shift ;;
esac
exec "${PYTHON:-python}" -m zscl.cil --config-path configs/class --config-name "$CONFIG" \
  dataset_root="../datasets/" class_order="class_orders/${CONFIG%%_*}.yaml" "$@"
