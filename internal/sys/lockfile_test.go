package sys

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, []byte("12345678901234567890 of a daemon that crashed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = LockFile(path)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() || locked.Path != path {
		t.Errorf("second LockFile = %v; want locked by process %d", err, os.Getpid())
	}
	f.Close()
	f, err = LockFile(path)
	if err != nil {
		t.Errorf("LockFile after close = %v; want nil", err)
	}
	f.Close()
	if _, err := LockFile(filepath.Join(t.TempDir(), "none", "lock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LockFile in no folder = %v; want not exist", err)
	}
}
