// Package e2e tests cri-shim as its clients see it: the program itself, crictl, the reference CNI plugins and a
// registry, all in namespaces, folders and control groups of their own.
package e2e
