#!/usr/bin/env bash
# MoE-Adapters, class-incremental: TinyImageNet, 100 classes and then 20 steps of 5. From the repository root:
#   bash moe_adapters/scripts/cil/run_experiment_tiny20step.sh dataset_root=/data
#   bash moe_adapters/scripts/cil/run_experiment_tiny20step.sh --scale mini
# This name counts the steps after the first 100 classes, as the paper; the configuration's names the classes of a step.
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.cil --config-path configs/class \
  --config-name tinyimagenet_100-5.yaml dataset_root="../datasets/" class_order="class_orders/tinyimagenet.yaml" \
  "$@"
