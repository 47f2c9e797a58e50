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

func TestTaskState(t *testing.T) {
	for text, want := range map[string]byte{
		"1 (sleep) S 0 1": 'S', "1 (a) R b) D 0": 'D', "1 (x)": 0, "": 0, "1 (x) ": 0,
	} {
		if got := taskState([]byte(text)); got != want {
			t.Errorf("taskState(%q) = %q; want %q", text, got, want)
		}
	}
}

func FuzzTaskState(f *testing.F) {
	f.Add([]byte("1 (sleep) S 0 1"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		taskState(data)
		threads(data)
	})
}

func TestThreads(t *testing.T) {
	const fields = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 7 0 99\n"
	for text, want := range map[string]uint64{
		"12 (a b) 17)" + fields: 7, "12 (x)" + fields: 7, "12 (x) S 1": 0, "": 0,
	} {
		if got := threads([]byte(text)); got != want {
			t.Errorf("threads(%q) = %d; want %d", text, got, want)
		}
	}
}

func TestCountTasks(t *testing.T) {
	var n usage.TaskStates
	looks := 0
	countTasks("/proc/self/task", &n, &looks)
	if n.Running == 0 || int(n.Running+n.Sleeping+n.Stopped+n.Uninterruptible) > looks {
		t.Errorf("countTasks of this process = %+v after %d looks; want a thread that runs", n, looks)
	}
	n = usage.TaskStates{}
	looks = maxTasks
	countTasks("/proc/self/task", &n, &looks)
	if n.Running != 0 || n.Sleeping == 0 {
		t.Errorf("countTasks beyond its bound = %+v; want sleeping ones", n)
	}
	countTasks("/proc/self/task/nothing", &n, &looks)
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
