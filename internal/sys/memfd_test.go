package sys

import (
	"os"
	"testing"
)

// TestMemfdIsSealed: what was handed over as a message cannot be changed by who has it, nor made shorter or longer.
func TestMemfdIsSealed(t *testing.T) {
	f, err := Memfd("test", []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("M"), 0); err == nil {
		t.Error("it can be written to")
	}
	for _, size := range []int64{3, 9} {
		if err := f.Truncate(size); err == nil {
			t.Errorf("it can be made %d bytes long", size)
		}
	}
	b := make([]byte, 7)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "message" {
		t.Errorf("it reads %q, %v", b, err)
	}
	page, err := SharedPage("test")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	if fi, err := page.Stat(); err != nil || fi.Size() != int64(os.Getpagesize()) {
		t.Errorf("a page of %v bytes, %v", fi, err)
	}
}
