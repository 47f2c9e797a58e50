package sys

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoadSeccompRefuses(t *testing.T) {
	for _, prog := range [][]byte{nil, make([]byte, 7), make([]byte, 9), make([]byte, 8*(1<<16))} {
		if fd, err := LoadSeccomp(prog, 0); !errors.Is(err, unix.EINVAL) || fd != -1 {
			t.Errorf("LoadSeccomp of %d bytes = %d, %v; want -1, %v", len(prog), fd, err, unix.EINVAL)
		}
	}
	// An instruction that no kernel takes: nothing is loaded.
	bad := []byte{0xff, 0xff, 0, 0, 0, 0, 0, 0}
	if fd, err := LoadSeccomp(bad, 0); err == nil || fd != -1 {
		t.Errorf("LoadSeccomp of a bad program = %d, %v; want an error", fd, err)
	}
}

func TestSeccompFlagsSupported(t *testing.T) {
	if SeccompFlagsSupported(1 << 30) {
		t.Error("SeccompFlagsSupported(1<<30) = true; want false")
	}
}
