//go:build tools

// Package tools keeps what hack/tools/build.sh builds in go.mod. It is a module of its own, so that the
// conformance suite's dependencies never decide a version in the product's go.mod.
//
// critest is the test binary of a package without Go files outside its tests, which no tool directive
// can name: the packages it is made of are imported here instead.
package tools

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
