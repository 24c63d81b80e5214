#!/usr/bin/env bash
# CLIP before any task, on the order's test sets. From the repository root; the order may come first.
set -euo pipefail
source "$(dirname "$0")/order.sh"
exec "${PYTHON:-python}" -m zscl.main --eval-only "${PROTOCOL[@]}" "$@"
