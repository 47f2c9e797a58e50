package initproc

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// opError is an operation, the path or name it was done on, and the cause.
// Package fmt is not used here: it costs process start.
type opError struct {
	op, path string
	err      error
}

func (e *opError) Error() string {
	if e.path == "" {
		return e.op + ": " + e.err.Error()
	}
	return e.op + " " + e.path + ": " + e.err.Error()
}

func (e *opError) Unwrap() error { return e.err }

// wrap names the operation and the path of a cause; nil stays nil.
func wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &opError{op, path, err}
}

// text is an error without a cause.
type text string

func (t text) Error() string { return string(t) }

// errnoOf is the errno at the end of a chain of causes, or 0.
func errnoOf(err error) syscall.Errno {
	for err != nil {
		if e, ok := err.(syscall.Errno); ok {
			return e
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return 0
		}
		err = u.Unwrap()
	}
	return 0
}

// kernelError says which kernel has what the running one lacks.
type kernelError struct {
	version string
	err     error
}

func (e *kernelError) Error() string {
	return "needs Linux " + e.version + " or later: " + e.err.Error()
}
func (e *kernelError) Unwrap() error { return e.err }

// needs names the kernel version where err says that the call is unknown.
func needs(version string, err error) error {
	if err == unix.ENOSYS {
		return &kernelError{version, err}
	}
	return err
}

func itoa(n int) string { return strconv.Itoa(n) }
