#!/usr/bin/env bash
# VQ-Prompt on ImageNet-R in 5, 10 and 20 tasks, seeds 0 to 4.
# From the repository root; OUT and NAME make the three log folders: --log_dir would give them one.
set -euo pipefail
for tasks in 5 10 20; do
    bash "$(dirname "$0")/imagenet-r.sh" "$tasks" "$@"
done
