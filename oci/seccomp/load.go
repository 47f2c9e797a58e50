package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxProfile bounds a profile file, in bytes. moby's default profile has 13 KiB.
const maxProfile = 1 << 20

// LoadFile is [Load] for the file at path, which must be a regular file of at
// most 1 MiB.
func LoadFile(path string, caps []string) (*specs.LinuxSeccomp, error) {
	body, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, err := Load(body, caps)
	if err != nil {
		return nil, fmt.Errorf("%w (in %s)", err, path)
	}
	return p, nil
}

// ReadFile reads what [Load] takes from the file at path, which must be a regular file
// of at most 1 MiB.
func ReadFile(path string) ([]byte, error) {
	body, err := readProfile(path)
	if err != nil {
		return nil, fmt.Errorf("seccomp: read profile %s: %w", path, err)
	}
	return body, nil
}

func readProfile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxProfile {
		return nil, fmt.Errorf("larger than %d bytes", maxProfile)
	}
	return body, nil
}

// Load reads a profile in docker's and the kubelet's format for localhost profiles:
// the seccomp section of the runtime specification, with archMap, and with includes
// and excludes by capability, architecture and kernel on each rule. caps are the
// process's bounding capabilities. Whether the rules themselves make sense is for
// [Compile] to say.
func Load(body []byte, caps []string) (*specs.LinuxSeccomp, error) {
	var raw moby.Seccomp
	if err := json.Unmarshal(body, &raw); err != nil {
		return nil, fmt.Errorf("seccomp: decode profile: %w", err)
	}
	// moby reads a profile that says nothing as no profile. A container that was
	// meant to be confined must not run without a filter because of an empty file.
	if raw.DefaultAction == "" {
		return nil, errors.New("seccomp: profile: defaultAction: missing")
	}
	for i, s := range raw.Syscalls {
		if s == nil {
			return nil, fmt.Errorf("seccomp: profile: syscalls[%d]: null", i)
		}
	}
	p, err := moby.LoadProfile(string(body), specWithCaps(caps))
	if err != nil {
		return nil, fmt.Errorf("seccomp: profile: %w", err)
	}
	return p, nil
}
