#!/bin/bash
# bench.sh [PACKAGE...]: runs the Go benchmarks (BENCH, default all) COUNT times (default 6), for benchstat.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
exec go test -run '^$' -bench "${BENCH:-.}" -benchmem -count "${COUNT:-6}" "${@:-./...}"
