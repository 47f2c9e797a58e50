package initproc_test

import (
	"os"
	"testing"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// TestMain: some tests compare all mounts before and after, and those of the machine are others' too.
func TestMain(m *testing.M) { os.Exit(testtools.RunPrivate(m)) }
