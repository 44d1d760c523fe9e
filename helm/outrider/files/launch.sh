# The main process of the scheduler's pod. KubeRay says how this pod joins Ray; with --block that would never return.
set -euo pipefail
ulimit -n "$(ulimit -Hn)"
eval "${KUBERAY_GEN_RAY_START_CMD/ --block/}"
exec outriderd up --config /etc/outrider/cell.toml
