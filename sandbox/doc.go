// Package sandbox is the life of pods and containers: their records, their
// namespaces, the supervisors that hold their processes, and the one teardown
// that roll-back, removal and recovery share.
package sandbox
