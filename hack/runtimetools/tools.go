//go:build tools

// Package tools keeps the runtime validation suite of the OCI in go.mod, for build.sh. It is a module of its own
// because the suite needs an older release of a library than the other tools do.
package tools

import (
	_ "github.com/opencontainers/runtime-tools/validation/util"
)
