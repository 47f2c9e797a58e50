#!/bin/bash
# build.sh TOOL [OUTDIR]: builds crictl, critest, ginkgo, gotestsum or staticcheck, in the version that go.mod
# names, into OUTDIR (default: .cache/tools of the repository). What was built from the same go.mod,
# go.sum and Go release is kept. Prints nothing but errors.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
tool=${1:?usage: build.sh crictl|critest|ginkgo|gotestsum|staticcheck [OUTDIR]}
out=${2:-$here/../../.cache/tools}
mkdir -p "$out"
out=$(realpath "$out")
cd "$here"

cri_tools=$(awk '$1 == "sigs.k8s.io/cri-tools" && $2 ~ /^v/ { print $2 }' go.mod)
version_flag="-X sigs.k8s.io/cri-tools/pkg/version.Version=$cri_tools"
case $tool in
  crictl) build=(go build -trimpath -ldflags "-s -w $version_flag" -o "$out/crictl.tmp" sigs.k8s.io/cri-tools/cmd/crictl) ;;
  critest) build=(go test -c -trimpath -ldflags "-s -w $version_flag" -o "$out/critest.tmp" sigs.k8s.io/cri-tools/cmd/critest) ;;
  ginkgo) build=(go build -trimpath -ldflags "-s -w" -o "$out/ginkgo.tmp" github.com/onsi/ginkgo/v2/ginkgo) ;;
  gotestsum) build=(go build -trimpath -ldflags "-s -w" -o "$out/gotestsum.tmp" gotest.tools/gotestsum) ;;
  staticcheck) build=(go build -trimpath -ldflags "-s -w" -o "$out/staticcheck.tmp" honnef.co/go/tools/cmd/staticcheck) ;;
  *) echo "build.sh: $tool: want crictl, critest, ginkgo, gotestsum or staticcheck" >&2; exit 2 ;;
esac

if ! command -v go > /dev/null; then # a test guest: what the host has built is all there is
  [ -x "$out/$tool" ] && exit 0
  echo "build.sh: no go command, and no $out/$tool" >&2
  exit 1
fi
stamp=$({ cat go.mod go.sum "$here/build.sh"; go version; } | sha256sum | cut -d' ' -f1)
[ -x "$out/$tool" ] && [ "$(cat "$out/$tool.stamp" 2>/dev/null)" = "$stamp" ] && exit 0

# Two builds at once (make -j, two checkouts' tests) wait for each other; the loser finds it done.
exec 9>"$out/$tool.lock"
flock 9
[ "$(cat "$out/$tool.stamp" 2>/dev/null)" = "$stamp" ] && [ -x "$out/$tool" ] && exit 0
CGO_ENABLED=0 GOFLAGS=-mod=readonly "${build[@]}"
mv "$out/$tool.tmp" "$out/$tool"
echo "$stamp" > "$out/$tool.stamp"
