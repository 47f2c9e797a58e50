package sys

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// rssFile is what of files is mapped into this process, in KiB.
func rssFile(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssFile:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Skip("needs RssFile in /proc/PID/status (Linux 4.5)")
	return 0
}

func TestDropProgramPages(t *testing.T) {
	// Every page of the code and the constants is wanted before.
	if _, err := os.ReadFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	}
	before := rssFile(t)
	if err := DropProgramPages(); err != nil {
		t.Fatal(err)
	}
	if after := rssFile(t); after > before*3/4 {
		t.Errorf("%d KiB of files, %d before; want at least a quarter less", after, before)
	}
}
