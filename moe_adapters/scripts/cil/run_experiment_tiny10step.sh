#!/usr/bin/env bash
# MoE-Adapters, class-incremental: TinyImageNet, 100 classes and then 10 steps of 10. From the repository root:
#   bash moe_adapters/scripts/cil/run_experiment_tiny10step.sh dataset_root=/data
#   bash moe_adapters/scripts/cil/run_experiment_tiny10step.sh --scale mini
# Here steps and classes a step are both 10; the two other scripts count steps, their configurations classes.
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.cil --config-path configs/class \
  --config-name tinyimagenet_100-10.yaml dataset_root="../datasets/" class_order="class_orders/tinyimagenet.yaml" \
  "$@"
