package image

import (
	"os"
	"testing"
)

func TestUserNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a user namespace and mounts")
	}
	s, err := Open(t.Context(), Config{Root: t.TempDir(), RegistryConfigDir: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.UserNamespaces(); err != nil {
		t.Skipf("idmapped layers on the temporary folder's file system: %v", err)
	}
	entries, err := os.ReadDir(s.path("empty"))
	if err != nil || len(entries) != 0 {
		t.Errorf("left in the empty layer: %v, %v", entries, err)
	}
}
