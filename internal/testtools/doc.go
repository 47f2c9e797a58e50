// Package testtools builds the programs that tests run: ours, and tools from other modules in the
// versions that go.mod names.
package testtools
