package sys

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// DropProgramPages takes the pages of this process's program that cannot have been written to, its code and constants, out
// of its memory (madvise(2), MADV_DONTNEED). What is used again comes back from the page cache, some pages at a time; what
// only the start needed does not.
func DropProgramPages() error {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	var all error
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		// proc_pid_maps(5): "00401000-004c3000 r-xp 00001000 00:01 1029  /usr/local/bin/cri-shim"
		span, rest, _ := strings.Cut(lines.Text(), " ")
		if !strings.HasSuffix(rest, " "+exe) || len(rest) < 2 || rest[1] != '-' {
			continue
		}
		var start, end uintptr
		if _, err := fmt.Sscanf(span, "%x-%x", &start, &end); err != nil {
			return fmt.Errorf("/proc/self/maps: %q: %w", span, err)
		}
		if err := madvise(start, end-start, unix.MADV_DONTNEED); err != nil {
			all = errors.Join(all, fmt.Errorf("madvise %s: %w", span, err))
		}
	}
	return all
}

func madvise(start, size uintptr, advice int) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, size, uintptr(advice)); errno != 0 {
		return errno
	}
	return nil
}
