#!/usr/bin/env bash
# MoE-Adapters, class-incremental: CIFAR100 in 50 tasks of 2 classes. From the repository root:
#   bash moe_adapters/scripts/cil/run_cifar100-2-2.sh dataset_root=/data
#   bash moe_adapters/scripts/cil/run_cifar100-2-2.sh --scale mini
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.cil --config-path configs/class \
  --config-name cifar100_2-2-MoE-Adapters.yaml dataset_root="../datasets/" class_order="class_orders/cifar100.yaml" \
  "$@"
