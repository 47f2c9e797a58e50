package version

import "testing"

func TestVersion(t *testing.T) {
	if got := Version(); got != "devel" {
		t.Errorf("Version() = %q; want devel in a test binary", got)
	}
	version, commit = "v1.2.3-4-gabcdef0", "abcdef0"
	t.Cleanup(func() { version, commit = "", "" })
	if got := Version(); got != "v1.2.3-4-gabcdef0" {
		t.Errorf("Version() = %q; want what the linker set", got)
	}
	if got := Commit(); got != "abcdef0" {
		t.Errorf("Commit() = %q; want what the linker set", got)
	}
}
