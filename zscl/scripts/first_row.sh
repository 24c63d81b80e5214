#!/usr/bin/env bash
# The cheapest check of a method: learns the first task only, evaluates it on all eleven sets and prints the accuracies
# beside the published ones. Named first is the script to check; the rest is for it.
#   bash zscl/scripts/first_row.sh ZSCL 1 --data-location /data
# The script itself, given the same flags later, goes on from there. From the repository root.
set -euo pipefail
SCRIPTS=$(dirname "$0")
NAME=${1:?"name a script: bash zscl/scripts/first_row.sh ZSCL 1"}
NAME=${NAME%.sh} && shift
case " $* " in *" --scale mini "* | *"scale=mini "*)
  echo "error: a miniature run is never held against published numbers; give a run at paper scale." >&2 && exit 2 ;;
esac
if [ "${1:-}" = xtail ]; then
  echo "error: no number was published for X-TAIL that a first row could be held against; give order 1 or 2." >&2 && exit 2
fi
bash "$SCRIPTS/$NAME.sh" "$@" --first-tasks 1
source "$SCRIPTS/order.sh"
RUN=ckpt/${NAME}_$ORDER
while [ $# -gt 0 ]; do # a --save of the caller's
  case $1 in
    --save) RUN=$2 && shift ;;
    --save=* | save=*) RUN=${1#*=} ;;
  esac
  shift
done
exec "${PYTHON:-python}" -m results first-row "$RUN"
