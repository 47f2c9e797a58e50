package oci

import (
	"net"
	"os"
	"testing"

	"github.com/cri-shim/cri-shim/internal/usage"
)

func TestMaxOpenFiles(t *testing.T) {
	const head = "Limit                     Soft Limit           Hard Limit           Units     \nMax processes             7                    7                    processes \n"
	for text, want := range map[string]uint64{
		head + "Max open files            1024                 524288               files     \n": 1024,
		head + "Max open files            unlimited            unlimited            files     \n": usage.Unlimited,
		head:             usage.Unlimited,
		"Max open files": usage.Unlimited,
	} {
		if got := maxOpenFiles([]byte(text)); got != want {
			t.Errorf("maxOpenFiles(%q) = %d; want %d", text, got, want)
		}
	}
}

func FuzzMaxOpenFiles(f *testing.F) {
	f.Add([]byte("Max open files            1024                 524288               files     \n"))
	f.Fuzz(func(_ *testing.T, data []byte) { maxOpenFiles(data) })
}

func TestCountFiles(t *testing.T) {
	var before, after usage.Processes
	countFiles("/proc/self/fd", &before)
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	countFiles("/proc/self/fd", &after)
	if after.Sockets < before.Sockets+1 || after.Files < before.Files+2 {
		t.Errorf("countFiles = %+v, then %+v with a file and a socket more", before, after)
	}
	countFiles("/proc/self/fd/nothing", &after)
}
