package oci

import (
	"errors"
	"fmt"
)

// FieldError is bad input: Field is the path of the CRI or OCI field that is at fault, "mounts[2].host_path".
type FieldError struct {
	Field string
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

func (e *FieldError) Unwrap() error { return e.Err }

// fieldf is a FieldError with a formatted reason.
func fieldf(field, format string, args ...any) error {
	return &FieldError{Field: field, Err: fmt.Errorf(format, args...)}
}

// UnsupportedError is a field of an OCI configuration that this runtime cannot honour. It matches
// errors.ErrUnsupported.
type UnsupportedError struct {
	Field  string // "linux.intelRdt", "mounts[3].options"
	Reason string
}

func (e *UnsupportedError) Error() string { return e.Field + ": unsupported: " + e.Reason }

// Is reports that the error is an errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

func unsupported(field, format string, args ...any) error {
	return &UnsupportedError{Field: field, Reason: fmt.Sprintf(format, args...)}
}
