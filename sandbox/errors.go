package sandbox

import (
	"errors"
	"fmt"
)

// Kinds of errors. Callers match them with errors.Is; the text says what, which and why.
var (
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the request itself is wrong; the text names the field.
	ErrInvalid = errors.New("invalid")
	// ErrState: the object is in a state in which this cannot be done.
	ErrState = errors.New("wrong state")
	// ErrExists: another object already has what must be unique.
	ErrExists = errors.New("already exists")
	// ErrBusy: an operation on the object is still running; the text says which and for how long.
	ErrBusy = errors.New("busy")
	// ErrUnavailable: something this depends on (a supervisor, a plugin) does not answer.
	ErrUnavailable = errors.New("unavailable")
	// ErrImageVolume: an image that a container has as a volume cannot be mounted.
	ErrImageVolume = errors.New("image volume")
)

// invalid is an ErrInvalid that names a field of the request.
func invalid(field, format string, a ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrInvalid, field, fmt.Errorf(format, a...))
}
