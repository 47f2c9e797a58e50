package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that is written as "1m30s".
type Duration struct{ time.Duration }

// Seconds is the Duration of n seconds.
func Seconds(n int) Duration { return Duration{time.Duration(n) * time.Second} }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	if d.Duration, err = time.ParseDuration(string(text)); err != nil {
		return fmt.Errorf("%q is no duration such as \"90s\" or \"5m\"", text)
	}
	return nil
}

// MarshalText writes 5m as "5m", not as "5m0s".
func (d Duration) MarshalText() ([]byte, error) {
	s := d.String()
	for _, zero := range []struct{ long, short string }{{"m0s", "m"}, {"h0m", "h"}} {
		if strings.HasSuffix(s, zero.long) {
			s = strings.TrimSuffix(s, zero.long) + zero.short
		}
	}
	return []byte(s), nil
}

// Size is a number of bytes that is written as "16MiB", or as "16384".
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

// MinLayerInodes is the least that a container's folder, its overlay and a few files of its own take.
const MinLayerInodes = 64

var units = []struct {
	name string
	size Size
}{{"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"", 1}}

// UnmarshalText reads a whole number of bytes, KiB, MiB or GiB.
func (s *Size) UnmarshalText(text []byte) error {
	for _, unit := range units {
		digits, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/int64(unit.size) {
			break
		}
		*s = Size(n) * unit.size
		return nil
	}
	return fmt.Errorf("%q is no size such as \"16384\", \"512KiB\", \"16MiB\" or \"1GiB\"", text)
}

// MarshalText writes the largest unit that loses nothing.
func (s Size) MarshalText() ([]byte, error) {
	for _, unit := range units {
		if s%unit.size == 0 && (s != 0 || unit.size == 1) {
			return fmt.Appendf(nil, "%d%s", s/unit.size, unit.name), nil
		}
	}
	panic("unreachable: the last unit divides every size")
}

// Unlimited is RLIM_INFINITY.
const Unlimited = math.MaxUint64

// Ulimit is a resource limit, written as "nofile=1024:524288"; "unlimited" stands for no limit and one
// number for both.
type Ulimit struct {
	Name       string // as in setrlimit(2), without RLIMIT_, in lower case
	Soft, Hard uint64 // in setrlimit(2)'s units
}

var ulimitNames = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
	"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

// UnmarshalText reads name=soft:hard or name=both.
func (u *Ulimit) UnmarshalText(text []byte) error {
	name, limits, ok := strings.Cut(string(text), "=")
	if !ok {
		return fmt.Errorf("%q is no limit such as \"nofile=1024:524288\"", text)
	}
	if !slices.Contains(ulimitNames, name) {
		return fmt.Errorf("%q: unknown limit; want one of %s", name, strings.Join(ulimitNames, ", "))
	}
	soft, hard, ok := strings.Cut(limits, ":")
	if !ok {
		hard = soft
	}
	s, err1 := parseLimit(soft)
	h, err2 := parseLimit(hard)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	if s > h {
		return fmt.Errorf("%q: the soft limit is above the hard limit", text)
	}
	*u = Ulimit{name, s, h}
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (u Ulimit) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s=%s:%s", u.Name, formatLimit(u.Soft), formatLimit(u.Hard)), nil
}

func parseLimit(s string) (uint64, error) {
	if s == "unlimited" {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a number nor \"unlimited\"", s)
	}
	return n, nil
}

func formatLimit(n uint64) string {
	if n == Unlimited {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}
