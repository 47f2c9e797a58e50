// Package api is what the daemon and a supervisor say to each other: one frame
// a SOCK_SEQPACKET message, a version byte and JSON, descriptors beside it by
// SCM_RIGHTS. Frames are bounded. Fields are only ever added, so that a new
// daemon can talk to the supervisors of the release before it; a receiver
// ignores fields that it does not know.
package api

import (
	"encoding/json"
	"errors"
	"fmt"
)

const (
	// Version is the first byte of every frame. It changes only when old
	// frames could be misread.
	Version = 1
	// MaxFrame bounds an encoded frame in bytes. What could be larger (the message
	// for the init) is handed over as a descriptor.
	MaxFrame = 64 << 10
	// MaxFiles bounds the descriptors beside a frame; the kernel's bound is 253 (SCM_MAX_FD).
	MaxFiles = 128
)

// ErrFrame is matched by every error about a malformed frame.
var ErrFrame = errors.New("malformed frame")

// Encode returns the frame that carries v.
func Encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(data) >= MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrFrame, len(data)+1, MaxFrame)
	}
	return append([]byte{Version}, data...), nil
}

// Decode reads a frame into v.
func Decode(frame []byte, v any) error {
	switch {
	case len(frame) == 0:
		return fmt.Errorf("%w: empty", ErrFrame)
	case len(frame) > MaxFrame:
		return fmt.Errorf("%w: %d bytes, limit %d", ErrFrame, len(frame), MaxFrame)
	case frame[0] != Version:
		return fmt.Errorf("%w: version %d, this program speaks %d", ErrFrame, frame[0], Version)
	}
	if err := json.Unmarshal(frame[1:], v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}
