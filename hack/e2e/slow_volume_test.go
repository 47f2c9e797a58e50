package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
)

// volume is an empty file system on storage that can be made to wait: FUSE, as far as that takes.
type volume struct {
	dir  string
	dev  *os.File
	gate sync.RWMutex
}

// Requests of linux/fuse.h that are answered.
const (
	fuseGetattr = 3
	fuseStatfs  = 17
	fuseInit    = 26
	fuseOpendir = 27
	fuseReaddir = 28
	fuseRelease = 29 // directory
	fuseForget  = 2
)

func slowVolume(t *testing.T) *volume {
	t.Helper()
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	v := &volume{dir: t.TempDir(), dev: os.NewFile(uintptr(fd), "/dev/fuse")}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := syscall.Mount("e2e", v.dir, "fuse.e2e", syscall.MS_NODEV|syscall.MS_NOSUID, options); err != nil {
		v.dev.Close()
		t.Skipf("needs FUSE: %v", err)
	}
	served := make(chan struct{})
	go func() { defer close(served); v.serve() }()
	t.Cleanup(func() {
		if err := syscall.Unmount(v.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
		// The connection ends once its last mount has gone; what still waits gets an error.
		v.dev.Close()
		<-served
	})
	return v
}

// hold makes who asks for anything wait, until release.
func (v *volume) hold()    { v.gate.Lock() }
func (v *volume) release() { v.gate.Unlock() }

func (v *volume) serve() {
	buf := make([]byte, 1<<17+4096)
	for {
		n, err := v.dev.Read(buf)
		if err != nil || n < 40 {
			return
		}
		opcode, unique := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint64(buf[8:])
		if opcode == fuseForget {
			continue
		}
		var errno syscall.Errno
		var out []byte
		switch opcode {
		case fuseInit:
			out = make([]byte, 64)
			binary.NativeEndian.PutUint32(out, 7)          // major
			binary.NativeEndian.PutUint32(out[4:], 31)     // minor
			binary.NativeEndian.PutUint32(out[20:], 1<<16) // max_write
		case fuseGetattr: // valid for no time, so that each look asks
			out = make([]byte, 104)
			binary.NativeEndian.PutUint64(out[16:], 1) // ino
			binary.NativeEndian.PutUint32(out[16+60:], syscall.S_IFDIR|0o755)
			binary.NativeEndian.PutUint32(out[16+64:], 2) // nlink
		case fuseStatfs:
			out = make([]byte, 80)
		case fuseOpendir:
			out = make([]byte, 16)
		case fuseReaddir, fuseRelease:
		default:
			errno = syscall.ENOSYS
		}
		if opcode != fuseInit {
			v.gate.RLock()
			v.gate.RUnlock() //nolint:staticcheck // only waits
		}
		answer := make([]byte, 16, 16+len(out))
		binary.NativeEndian.PutUint32(answer, uint32(16+len(out)))
		binary.NativeEndian.PutUint32(answer[4:], uint32(-int32(errno)))
		binary.NativeEndian.PutUint64(answer[8:], unique)
		if _, err := v.dev.Write(append(answer, out...)); err != nil && err != syscall.ENOENT { // interrupted
			return
		}
	}
}
