package oci

import (
	"errors"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The document promises no mount option that Compile refuses, and leaves none out that it takes.
func TestFeaturesMountOptions(t *testing.T) {
	listed := Features().MountOptions
	if !slices.IsSorted(listed) || len(listed) == 0 {
		t.Fatalf("MountOptions = %v; want a sorted list", listed)
	}
	for o := range mountOptions {
		m := specs.Mount{Destination: "/m", Source: "/", Type: "bind", Options: []string{"bind", o}}
		if o == "tmpcopyup" {
			m = specs.Mount{Destination: "/m", Source: "tmpfs", Type: "tmpfs", Options: []string{o}}
		}
		s := minimalSpec()
		s.Mounts = []specs.Mount{m}
		l, err := Compile(s, Options{})
		if l != nil {
			l.Close()
		}
		if known := slices.Contains(listed, o); known != !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("option %q: listed %v, Compile = %v", o, known, err)
		}
	}
}

func TestFeaturesOfThisBuild(t *testing.T) {
	f := Features()
	if f.OCIVersionMax != specs.Version {
		t.Errorf("OCIVersionMax = %q; want %q", f.OCIVersionMax, specs.Version)
	}
	if got, want := len(f.Linux.Capabilities), len(capNames); got != want || f.Linux.Capabilities[0] != "CAP_CHOWN" {
		t.Errorf("%d capabilities, the first %q; want %d from CAP_CHOWN on", got, f.Linux.Capabilities[0], want)
	}
	if !slices.Contains(f.Linux.Namespaces, "time") || len(f.Linux.Namespaces) != len(namespaceFlags) {
		t.Errorf("Namespaces = %v", f.Linux.Namespaces)
	}
}
