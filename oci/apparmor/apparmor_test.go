package apparmor

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestEnsure(t *testing.T) {
	if !Enabled() {
		t.Skip("needs a kernel with AppArmor")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Skip("needs apparmor_parser")
	}
	for range 2 {
		if err := Ensure(t.Context(), DefaultName); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("sh", "-c", "echo exec "+DefaultName+" > /proc/self/attr/exec && exec cat /proc/self/attr/current").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != DefaultName+" (enforce)" {
		t.Errorf("a process in the profile: %q, %v", out, err)
	}
}

func TestEnsureOfAnother(t *testing.T) {
	err := Ensure(t.Context(), "no-such-profile")
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), `"no-such-profile"`) {
		t.Errorf("Ensure = %v; want an error that names the profile", err)
	}
}

func TestEnsureWithoutParser(t *testing.T) {
	if !Enabled() || os.Geteuid() != 0 {
		t.Skip("needs root and a kernel with AppArmor")
	}
	if err := Ensure(t.Context(), DefaultName); err == nil {
		if out, err := exec.Command("sh", "-c", "printf 'profile "+DefaultName+" {}' | apparmor_parser -R").CombinedOutput(); err != nil {
			t.Fatalf("unload: %v: %s", err, out)
		}
	}
	t.Setenv("PATH", t.TempDir())
	err := Ensure(t.Context(), DefaultName)
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "apparmor_parser") {
		t.Errorf("Ensure without apparmor_parser = %v; want an error that names it", err)
	}
}
