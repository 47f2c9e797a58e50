package criu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// FuzzDescriptors: the file beside the images that says what the standard streams were. Nothing but the three of them is
// handed to criu, and nothing by a name that is a path.
func FuzzDescriptors(f *testing.F) {
	f.Add([]byte(`["pipe:[123]","/dev/null","file[1:2]"]`))
	f.Add([]byte(`["pipe:[1]","pipe:[1]","pipe:[1]","pipe:[1]"]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, DescriptorsFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		opts := new(rpc.CriuOpts)
		o := &RestoreOptions{}
		o.Images = dir
		if err := o.streams(opts); err != nil {
			return
		}
		for _, fd := range opts.InheritFd {
			if fd.GetFd() < 0 || fd.GetFd() > 2 || strings.HasPrefix(fd.GetKey(), "/") {
				t.Errorf("%q hands over %q as %d", b, fd.GetKey(), fd.GetFd())
			}
		}
	})
}

// FuzzMountIDs: /proc/PID/mountinfo and fdinfo of a process of the container's, whose names are the container's.
func FuzzMountIDs(f *testing.F) {
	f.Add([]byte("22 27 0:21 / /proc rw,relatime shared:1 - proc proc rw\n"), []byte("pos:\t0\nmnt_id:\t22\n"))
	f.Fuzz(func(t *testing.T, mounts, info []byte) {
		dir := t.TempDir()
		at, fd := filepath.Join(dir, "mountinfo"), filepath.Join(dir, "fdinfo")
		if os.WriteFile(at, mounts, 0o600) != nil || os.WriteFile(fd, info, 0o600) != nil {
			t.Fatal("write")
		}
		ids, err := mountIDs(at)
		if err == nil && ids == nil {
			t.Error("mountIDs = nil")
		}
		if _, err := mountID(fd); err == nil && !strings.Contains(string(info), "mnt_id:") {
			t.Errorf("an ID in %q", info)
		}
	})
}
