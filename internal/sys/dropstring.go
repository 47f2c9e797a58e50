package sys

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DropStringPages takes the pages that hold nothing but s out of this process's memory (madvise(2),
// MADV_DONTNEED); a later read brings them back from the file. For large strings that the linker put
// into the executable, a //go:embed for one, and for nothing else: what was written at run time would
// be lost.
func DropStringPages(s string) error {
	page := uintptr(os.Getpagesize())
	start := uintptr(unsafe.Pointer(unsafe.StringData(s)))
	skip := (page - start%page) % page
	if uintptr(len(s)) < skip+page {
		return nil
	}
	inner := unsafe.Slice(unsafe.StringData(s), len(s))[skip:]
	inner = inner[:uintptr(len(inner))/page*page]
	if err := unix.Madvise(inner, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("madvise %d bytes: %w", len(inner), err)
	}
	return nil
}
