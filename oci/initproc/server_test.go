package initproc

import (
	"os"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestForkWaitsUntilItIsKnown: no workload is executed that the parent was not told of.
func TestForkWaitsUntilItIsKnown(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	page, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	told := (*uint32)(unsafe.Pointer(&page[0])) // unmapped before the workload
	s := newSetup(&server{told: told, forks: 1, proc: -1})
	s.sync = int(w.Fd())
	done := make(chan error, 1)
	go func() { done <- s.executing("true") }()
	select {
	case err := <-done:
		t.Fatalf("executing = %v before the parent was told", err)
	case <-time.After(20 * time.Millisecond):
	}
	atomic.StoreUint32(told, 1)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if rep, _, err := initmsg.DecodeReport(buf[:n]); err != nil || rep == nil || rep.Kind != initmsg.KindExecute {
		t.Errorf("report = %v, %v; want the one of execution", rep, err)
	}
}

// TestSameMount changes one field after the other.
func TestSameMount(t *testing.T) {
	a := &initmsg.Mount{FSType: "tmpfs", Target: "/x", Options: []string{"size=1"}}
	same := *a
	same.Options = slices.Clone(a.Options)
	if !sameMount(a, &same) {
		t.Error("a copy is not the same")
	}
	for i := range reflect.TypeFor[initmsg.Mount]().NumField() {
		b := *a
		switch f := reflect.ValueOf(&b).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString("other")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int32:
			f.SetInt(7)
		case reflect.Uint32, reflect.Uint64:
			f.SetUint(7)
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"size=2"}))
		default:
			t.Fatalf("field of kind %v", f.Kind())
		}
		if sameMount(a, &b) {
			t.Errorf("with another %s it is the same", reflect.TypeFor[initmsg.Mount]().Field(i).Name)
		}
	}
}
