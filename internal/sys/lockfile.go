package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockedError says that another process holds a lock file.
type LockedError struct {
	Path string
	PID  int // of the holder, 0 when it cannot be told
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return e.Path + ": locked by another process"
	}
	return fmt.Sprintf("%s: locked by process %d", e.Path, e.PID)
}

// LockFile makes and locks the file at path and writes this process's ID into it; a
// *LockedError when another process has it. The lock ends with the file's close, or with the
// process, however it dies (flock(2)).
func LockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = retryEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		if err = writePID(f); err == nil {
			return f, nil
		}
	} else if errors.Is(err, unix.EWOULDBLOCK) {
		err = &LockedError{Path: path, PID: readPID(f)}
	} else {
		err = fmt.Errorf("lock %s: %w", path, err)
	}
	f.Close()
	return nil, err
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func readPID(f *os.File) int {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// Umask sets the process's mode creation mask (umask(2)).
func Umask(mask int) { unix.Umask(mask) }
